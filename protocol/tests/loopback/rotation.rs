//! Certificates and authorities are replaced while the port is served.

use godwit_protocol::{
    AgentClient, ClientTls, Credentials, CurrentCredentials, Fault, GuestName, PeerIdentity, ServerTls,
    TlsFiles, TrustDomain,
};

use crate::authority::{Authority, CONTROLLER, Dates, host};
use crate::scripted::{Agent, Served};

fn load(files: &TlsFiles) -> Credentials {
    files.load(&TrustDomain::default()).unwrap()
}

/// Believing in all of these.
fn believing(files: TlsFiles, authorities: &[&TlsFiles]) -> Credentials {
    let text: String = authorities
        .iter()
        .map(|files| std::fs::read_to_string(&files.authorities).unwrap())
        .collect();
    std::fs::write(&files.authorities, text).unwrap();
    load(&files)
}

fn client(credentials: &Credentials) -> ClientTls {
    ClientTls::new(CurrentCredentials::new(credentials.clone()))
}

async fn connect(served: &Served, credentials: &Credentials) -> Result<AgentClient, Fault> {
    AgentClient::connect(&served.endpoint(), "node-a", &client(credentials)).await
}

/// The connection carries calls.
async fn lives(client: &AgentClient) {
    let guest = GuestName {
        uid: "guest-1".to_owned(),
        namespace: "default".to_owned(),
        name: "guest".to_owned(),
    };
    client.stop_guest(&guest, 1).await.unwrap();
}

#[tokio::test]
async fn r5_a_renewed_certificate_serves_new_connections_and_breaks_none_that_stand() {
    let authority = Authority::new();
    let current = CurrentCredentials::new(load(&authority.issue("first", &host("node-a"), Dates::Past)));
    let served = Served::new(Agent::default(), ServerTls::new(current.clone())).await;
    let controller = load(&authority.issue("controller", CONTROLLER, Dates::Good));
    // Nobody connects while it is the expired one; the next handshake has the new one.
    let fault = connect(&served, &controller).await.unwrap_err();
    assert_eq!(fault.reason, "CertificateRejected", "{fault:?}");
    current
        .replace(load(&authority.issue("second", &host("node-a"), Dates::Good)))
        .unwrap();
    let standing = connect(&served, &controller).await.unwrap();
    lives(&standing).await;
    // What runs out under a connection does not cut it: migrations outlast certificates.
    current
        .replace(load(&authority.issue("third", &host("node-a"), Dates::Past)))
        .unwrap();
    assert!(connect(&served, &controller).await.is_err());
    lives(&standing).await;
}

#[tokio::test]
async fn r5_two_authorities_overlap_at_a_rotation() {
    let (old, new) = (Authority::new(), Authority::new());
    let (of_old, of_new) = (
        old.issue("of-old", CONTROLLER, Dates::Good),
        new.issue("of-new", CONTROLLER, Dates::Good),
    );
    let agent = |name: &str, authority: &Authority| authority.issue(name, &host("node-a"), Dates::Good);
    let current = CurrentCredentials::new(believing(agent("1", &old), &[&of_old]));
    let served = Served::new(Agent::default(), ServerTls::new(current.clone())).await;
    let by_old = believing(old.issue("c-old", CONTROLLER, Dates::Good), &[&of_old, &of_new]);
    let by_new = believing(new.issue("c-new", CONTROLLER, Dates::Good), &[&of_old, &of_new]);
    let standing = connect(&served, &by_old).await.unwrap();
    assert!(connect(&served, &by_new).await.is_err());

    // Both are believed, whoever has issued the agent's own.
    for (name, authority) in [("2", &old), ("3", &new)] {
        current
            .replace(believing(agent(name, authority), &[&of_old, &of_new]))
            .unwrap();
        lives(&connect(&served, &by_old).await.unwrap()).await;
        lives(&connect(&served, &by_new).await.unwrap()).await;
    }
    current.replace(believing(agent("4", &new), &[&of_new])).unwrap();
    lives(&connect(&served, &by_new).await.unwrap()).await;
    let fault = connect(&served, &by_old).await.unwrap_err();
    assert_eq!(fault.reason, "CertificateRejected", "{fault:?}");
    lives(&standing).await;
}

#[tokio::test]
async fn r5_a_certificate_that_is_not_yet_valid_is_refused_by_name() {
    let authority = Authority::new();
    let served = Served::new(Agent::default(), authority.server(&host("node-a"))).await;
    let early = load(&authority.issue("early", CONTROLLER, Dates::Future));
    let fault = connect(&served, &early).await.unwrap_err();
    assert_eq!(fault.reason, "CertificateRejected", "{fault:?}");

    let server = load(&authority.issue("early-server", &host("node-a"), Dates::Future));
    let server = ServerTls::new(CurrentCredentials::new(server));
    let served = Served::new(Agent::default(), server).await;
    let controller = load(&authority.issue("controller", CONTROLLER, Dates::Good));
    let fault = connect(&served, &controller).await.unwrap_err();
    assert_eq!(fault.reason, "CertificateRejected", "{fault:?}");
    assert!(fault.message.contains("not valid yet"), "{}", fault.message);
}

#[tokio::test]
async fn r4_another_trust_domain_is_refused_even_with_the_same_authority() {
    let authority = Authority::new();
    let served = Served::new(Agent::default(), authority.server(&host("node-a"))).await;
    let domain = TrustDomain::new("example.org").unwrap();
    let files = authority.issue("theirs", &PeerIdentity::Controller.uri(&domain), Dates::Good);
    let theirs = ClientTls::load(&files, &domain).unwrap();
    let fault = AgentClient::connect(&served.endpoint(), "node-a", &theirs)
        .await
        .unwrap_err();
    assert_eq!(fault.reason, "CertificateRejected", "{fault:?}");
}
