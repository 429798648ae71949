//! Who gets in and who does not; the port serves on after each stranger.

use godwit_protocol::{
    AgentClient, Category, ClientTls, Fault, PeerIdentity, ServerTls, TlsFiles, TrustDomain,
};
use rustls::AlertDescription as Alert;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::authority::{Authority, CONTROLLER, Dates, host};
use crate::raw::{DEADLINE, Stranger};
use crate::scripted::{Agent, HelloScript, Served};

async fn served(authority: &Authority) -> Served {
    Served::new(Agent::default(), authority.server(&host("node-a"))).await
}

async fn refused(endpoint: &str, tls: &ClientTls) -> Fault {
    AgentClient::connect(endpoint, "node-a", tls).await.unwrap_err()
}

fn is_certificate_rejected(fault: &Fault) {
    assert_eq!(
        (fault.category, fault.reason.as_ref()),
        (Category::Forbidden, "CertificateRejected"),
        "{fault:?}"
    );
    assert!(fault.message.contains("node-a"), "{}", fault.message);
}

fn is_unreachable(fault: &Fault) {
    assert_eq!(
        (fault.category, fault.reason.as_ref()),
        (Category::Unavailable, "AgentUnreachable"),
        "{fault:?}"
    );
}

/// The port still serves those who may.
async fn still_serves(authority: &Authority, served: &Served) {
    let client = AgentClient::connect(&served.endpoint(), "node-a", &authority.client(CONTROLLER)).await;
    assert_eq!(client.unwrap().host(), "node-a");
}

#[tokio::test]
async fn controller_and_host_get_in() {
    let authority = Authority::new();
    let served = served(&authority).await;
    for uri in [CONTROLLER.to_owned(), host("node-b")] {
        let client = AgentClient::connect(&served.endpoint(), "node-a", &authority.client(&uri))
            .await
            .unwrap();
        assert_eq!(
            (client.host(), client.boot_id(), client.version()),
            ("node-a", "boot-1", 2)
        );
    }
    assert_eq!(authority.client(CONTROLLER).identity(), &PeerIdentity::Controller);
}

#[tokio::test]
async fn no_client_certificate() {
    let authority = Authority::new();
    let served = served(&authority).await;
    let files = authority.issue("unused", CONTROLLER, Dates::Good);
    let stranger = Stranger {
        files: None,
        ..Stranger::with(files)
    };
    assert_eq!(
        stranger.turned_away(served.address).await,
        Some(rustls::Error::AlertReceived(Alert::CertificateRequired))
    );
    still_serves(&authority, &served).await;
}

#[tokio::test]
async fn a_client_of_another_authority() {
    let authority = Authority::new();
    let served = served(&authority).await;
    // It trusts the server, but the server does not trust it.
    let trusted = authority.issue("mine", CONTROLLER, Dates::Good).authorities;
    let foreign = Authority::new();
    let files = TlsFiles {
        authorities: trusted,
        ..foreign.issue("other", CONTROLLER, Dates::Good)
    };
    is_certificate_rejected(
        &refused(
            &served.endpoint(),
            &ClientTls::load(&files, &TrustDomain::default()).unwrap(),
        )
        .await,
    );
    still_serves(&authority, &served).await;
}

#[tokio::test]
async fn a_server_of_another_authority() {
    let authority = Authority::new();
    let served = served(&authority).await;
    // The server trusts it, but it does not trust the server.
    let foreign = Authority::new();
    let files = TlsFiles {
        authorities: foreign.issue("other", CONTROLLER, Dates::Good).authorities,
        ..authority.issue("mine", CONTROLLER, Dates::Good)
    };
    let fault = refused(
        &served.endpoint(),
        &ClientTls::load(&files, &TrustDomain::default()).unwrap(),
    )
    .await;
    is_certificate_rejected(&fault);
    assert!(
        fault.message.contains("The other side's certificate"),
        "{}",
        fault.message
    );
    still_serves(&authority, &served).await;
}

#[tokio::test]
async fn a_refused_client_may_go_on_sending_until_it_reads_why() {
    let authority = Authority::new();
    let served = served(&authority).await;
    let foreign = Authority::new();
    let stranger = Stranger::with(foreign.issue("other", CONTROLLER, Dates::Good));
    let mut stream = stranger.connect(served.address).await.unwrap();
    // More than the server has read when it judges the certificate. Closing then would reset the connection.
    stream.write_all(&[0; 32 * 1024]).await.unwrap();
    stream.get_ref().0.readable().await.unwrap();
    stream.write_all(b"more").await.unwrap();
    stream.flush().await.unwrap();
    let why = stream.read(&mut [0; 1]).await.unwrap_err();
    let why = why.get_ref().unwrap().downcast_ref::<rustls::Error>();
    assert!(matches!(why, Some(rustls::Error::AlertReceived(_))), "{why:?}");
}

#[tokio::test]
async fn a_server_with_another_name() {
    let authority = Authority::new();
    for uri in [host("node-b"), CONTROLLER.to_owned()] {
        let served = Served::new(Agent::default(), authority.server(&uri)).await;
        let fault = refused(&served.endpoint(), &authority.client(CONTROLLER)).await;
        is_certificate_rejected(&fault);
        assert!(fault.message.contains("not of host node-a"), "{}", fault.message);
    }
}

#[tokio::test]
async fn an_agent_that_says_another_name_than_its_certificate() {
    let authority = Authority::new();
    let agent = Agent {
        hello: HelloScript::OtherHost,
        ..Agent::default()
    };
    let served = Served::new(agent, authority.server(&host("node-a"))).await;
    is_certificate_rejected(&refused(&served.endpoint(), &authority.client(CONTROLLER)).await);
}

#[tokio::test]
async fn a_client_that_names_nobody() {
    let authority = Authority::new();
    let served = served(&authority).await;
    for uri in [
        "https://example.org",
        "spiffe://godwit.dev/godwit/signer",
        "spiffe://godwit.dev/godwit/host/UPPER",
        "spiffe://godwit.dev/host/node-b",
        "spiffe://example.org/godwit/host/node-b",
    ] {
        let stranger = Stranger::with(authority.issue("nobody", uri, Dates::Good));
        let why = stranger.turned_away(served.address).await;
        assert!(
            matches!(why, Some(rustls::Error::AlertReceived(_))),
            "{uri}: {why:?}"
        );
    }
    still_serves(&authority, &served).await;
}

#[tokio::test]
async fn certificates_outside_their_dates() {
    let authority = Authority::new();
    let good = served(&authority).await;
    let past = ClientTls::load(
        &authority.issue("past", CONTROLLER, Dates::Past),
        &TrustDomain::default(),
    )
    .unwrap();
    let fault = refused(&good.endpoint(), &past).await;
    is_certificate_rejected(&fault);
    assert!(fault.message.contains("Expired"), "{}", fault.message);

    let server = ServerTls::load(
        &authority.issue("past-server", &host("node-a"), Dates::Past),
        &TrustDomain::default(),
    )
    .unwrap();
    let expired = Served::new(Agent::default(), server).await;
    let fault = refused(&expired.endpoint(), &authority.client(CONTROLLER)).await;
    is_certificate_rejected(&fault);
    assert!(fault.message.contains("expired"), "{}", fault.message);
    still_serves(&authority, &good).await;
}

#[tokio::test]
async fn an_older_tls() {
    let authority = Authority::new();
    let served = served(&authority).await;
    let stranger = Stranger {
        version: &rustls::version::TLS12,
        ..Stranger::with(authority.issue("tls12", CONTROLLER, Dates::Good))
    };
    assert_eq!(
        stranger.turned_away(served.address).await,
        Some(rustls::Error::AlertReceived(Alert::ProtocolVersion))
    );
    still_serves(&authority, &served).await;
}

#[tokio::test]
async fn another_application_protocol() {
    let authority = Authority::new();
    let served = served(&authority).await;
    let files = authority.issue("alpn", CONTROLLER, Dates::Good);
    // A tunnel's handshake is the relay's: where there is none, nothing is said.
    for (alpn, told) in [
        (
            &b"http/1.1"[..],
            Some(rustls::Error::AlertReceived(Alert::NoApplicationProtocol)),
        ),
        (b"godwit-tunnel/1", None),
    ] {
        let stranger = Stranger {
            alpn: vec![alpn.to_vec()],
            ..Stranger::with(files.clone())
        };
        assert_eq!(stranger.turned_away(served.address).await, told);
    }
    still_serves(&authority, &served).await;
}

#[tokio::test]
async fn no_application_protocol() {
    let authority = Authority::new();
    let served = served(&authority).await;
    let files = authority.issue("alpn", CONTROLLER, Dates::Good);
    let mut stream = Stranger {
        alpn: Vec::new(),
        ..Stranger::with(files)
    }
    .connect(served.address)
    .await
    .unwrap();
    let read = tokio::time::timeout(DEADLINE, stream.read(&mut [0; 1]))
        .await
        .expect("it is not closed");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    still_serves(&authority, &served).await;
}

#[tokio::test]
async fn garbage_on_the_port() {
    let authority = Authority::new();
    let served = served(&authority).await;
    let mut noise = vec![0u8; 200_000];
    let mut state = 1u32;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = state.to_be_bytes()[0];
    }
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x00",
        b"\x16\x03\x01\xff\xff",
        &noise,
    ] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        // The server may close in the middle of it.
        drop(stream.write_all(garbage).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "it is not closed");
        assert!(answer.len() < 100, "a stranger gets an alert at most");
    }
    still_serves(&authority, &served).await;
}

#[tokio::test]
async fn nobody_listens() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    drop(listener);
    let fault = refused(&endpoint, &authority.client(CONTROLLER)).await;
    is_unreachable(&fault);
    assert!(fault.message.contains(&endpoint), "{}", fault.message);
    is_unreachable(&refused("not an endpoint", &authority.client(CONTROLLER)).await);
}

#[tokio::test]
async fn something_else_listens() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let stranger = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").await.unwrap();
        let mut heard = Vec::new();
        drop(stream.read_to_end(&mut heard).await);
    });
    is_unreachable(&refused(&endpoint, &authority.client(CONTROLLER)).await);
    stranger.await.unwrap();
}
