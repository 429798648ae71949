use std::path::Path;
use std::time::{Duration, SystemTime};

use godwit_protocol::Credentials;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use super::*;
use crate::judge::{Verdict, judge};

struct Authority(CertifiedIssuer<'static, KeyPair>);

#[derive(Clone)]
struct Issued {
    chain: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, identity: &PeerIdentity, years: (i32, i32)) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        let uri = identity.uri(&TrustDomain::default()).try_into().unwrap();
        parameters.subject_alt_names = vec![SanType::URI(uri)];
        parameters.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        Issued {
            chain: parameters.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

const NOW: (i32, i32) = (2001, 2090);
const LATER: (i32, i32) = (2089, 2090);
const PAST: (i32, i32) = (2001, 2002);

fn host(name: &str) -> PeerIdentity {
    PeerIdentity::Host(name.to_owned())
}

struct Written {
    directory: tempfile::TempDir,
}

impl Written {
    fn new(authorities: &str, issued: &Issued) -> Self {
        let written = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        written.authorities(authorities);
        written.pair(issued);
        written
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// As a careful writer does it: nobody sees half a file.
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path("unfinished"), text).unwrap();
        std::fs::rename(self.path("unfinished"), self.path(name)).unwrap();
    }

    fn authorities(&self, text: &str) {
        self.write("ca.crt", text);
    }

    fn pair(&self, issued: &Issued) {
        self.write("tls.crt", &issued.chain);
        self.write("tls.key", &issued.key);
    }

    fn files(&self) -> TlsFiles {
        TlsFiles {
            authorities: self.path("ca.crt"),
            chain: self.path("tls.crt"),
            key: self.path("tls.key"),
        }
    }

    fn load(&self) -> Result<Credentials, TlsError> {
        self.files().load(&TrustDomain::default())
    }
}

#[tokio::test]
async fn files_of_another_are_refused_at_the_start() {
    let authority = Authority::new();
    let written = Written::new(&authority.0.pem(), &authority.issue(&host("b"), NOW));
    let stop = CancellationToken::new();
    let opened = Source::Files(written.files())
        .open(&host("a"), &TrustDomain::default(), &stop)
        .await;
    match opened {
        Err(OpenError::Tls(why @ TlsError::OtherIdentity { .. })) => {
            let words = why.to_string();
            assert!(words.contains("host/b") && words.contains("host/a"), "{words}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("another host's certificate was taken"),
    }
}

#[test]
fn what_cannot_be_used_never_takes_the_place_of_what_works() {
    let authority = Authority::new();
    let first = authority.issue(&host("a"), NOW);
    let written = Written::new(&authority.0.pem(), &first);
    let used = written.load().unwrap();
    let judged = || judge(&used, written.load(), SystemTime::now());
    assert!(matches!(judged(), Verdict::Same));

    // A pair of which one half was written.
    let second = authority.issue(&host("a"), NOW);
    written.write("tls.crt", &second.chain);
    assert!(matches!(judged(), Verdict::Keep(TlsError::Key { .. })));
    written.pair(&second);
    assert!(matches!(judged(), Verdict::Take(_)));

    written.pair(&authority.issue(&host("a"), LATER));
    assert!(matches!(judged(), Verdict::Keep(TlsError::NotYetValid { .. })));
    written.pair(&authority.issue(&host("a"), PAST));
    assert!(matches!(judged(), Verdict::Keep(TlsError::Expired { .. })));

    written.pair(&second);
    written.authorities("");
    assert!(matches!(judged(), Verdict::Keep(TlsError::Missing { .. })));
    std::fs::remove_file(written.path("ca.crt")).unwrap();
    assert!(matches!(judged(), Verdict::Keep(TlsError::Unreadable { .. })));
}

/// Waits until the credentials were replaced.
async fn replaced(changes: &mut tokio::sync::watch::Receiver<Credentials>) -> Credentials {
    tokio::time::timeout(Duration::from_secs(20), changes.changed())
        .await
        .expect("the files were not read again")
        .unwrap();
    changes.borrow_and_update().clone()
}

#[tokio::test]
async fn changed_files_are_taken_up_and_other_identities_are_not() {
    let authority = Authority::new();
    let written = Written::new(&authority.0.pem(), &authority.issue(&host("a"), NOW));
    let current = CurrentCredentials::new(written.load().unwrap());
    let mut changes = current.changes();
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(files::keep(
        written.files(),
        current.clone(),
        Duration::from_millis(5),
        stop.clone(),
    ));

    let second = authority.issue(&host("a"), NOW);
    written.pair(&second);
    let taken = replaced(&mut changes).await;
    assert_eq!(taken.pem().chain.text, second.chain.as_bytes());

    // Another host's certificate lies there for a while, then both roots of a rotation with the good one.
    written.pair(&authority.issue(&host("b"), NOW));
    let two = authority.0.pem() + &Authority::new().0.pem();
    written.authorities(&two);
    written.pair(&second);
    let taken = replaced(&mut changes).await;
    assert_eq!(taken.pem().authorities.text, two.as_bytes());
    assert_eq!(taken.identity(), &host("a"));

    stop.cancel();
    keeping.await.unwrap();
}

#[test]
fn credentials_of_another_program_are_not_put_in() {
    let authority = Authority::new();
    let written = Written::new(&authority.0.pem(), &authority.issue(&host("a"), NOW));
    let current = CurrentCredentials::new(written.load().unwrap());
    written.pair(&authority.issue(&PeerIdentity::Controller, NOW));
    let refused = current.replace(written.load().unwrap()).unwrap_err();
    assert!(matches!(refused, TlsError::OtherIdentity { .. }), "{refused}");
    assert_eq!(current.get().identity(), &host("a"));
}

#[tokio::test]
async fn a_kept_certificate_serves_a_program_that_is_started_again() {
    let authority = Authority::new();
    let issued = authority.issue(&host("a"), NOW);
    let written = Written::new(&authority.0.pem(), &issued);
    let kept = written.path("kept");
    let open = |path: &Path, identity: PeerIdentity| {
        let request = Request {
            // Nobody listens there: what is kept must do.
            client: kube::Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap(),
            signer: "godwit.dev/agent".to_owned(),
            lifetime: Duration::from_secs(3600),
            authorities: written.path("ca.crt"),
            directory: path.to_owned(),
        };
        async move {
            let (domain, stop) = (TrustDomain::default(), CancellationToken::new());
            let opened = Source::Request(Box::new(request)).open(&identity, &domain, &stop);
            tokio::time::timeout(Duration::from_secs(1), opened).await
        }
    };
    assert!(open(&kept, host("a")).await.is_err(), "nothing is kept yet");
    crate::store::Store::new(kept.clone())
        .write((issued.key.clone() + &issued.chain).as_bytes())
        .unwrap();
    let (current, _) = open(&kept, host("a")).await.unwrap().unwrap();
    assert_eq!(current.identity(), &host("a"));
    assert!(open(&kept, host("b")).await.is_err(), "it is another host's");
}
