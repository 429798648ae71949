//! A connection's first bytes, a channel's header, and what agent and relay say to each other.

use std::sync::Arc;

use godwit_relay::channel::{Channel, ChannelKind, Token};
use godwit_relay::header::{self, Header, Refusal};
use godwit_relay::order::{
    Answer, Begin, ChannelState, ChannelStatus, Credentials, End, Ending, Event, Opening, Order, Role, Said,
    Status, Task,
};
use godwit_tls::hello::{ALPN_TUNNEL, HelloReader, server_name};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use uuid::Uuid;

fn opening() -> Opening {
    Opening {
        channel: Channel::new(ChannelKind::Multifd, 3),
        token: Token::from_bytes([5; 32]),
    }
}

/// Headers that are taken.
pub fn headers() -> Vec<Vec<u8>> {
    let header = |kind| Header {
        migration: Uuid::from_u128(9),
        channel: Channel::new(kind, 7),
        token: Token::from_bytes([3; 32]),
    };
    ChannelKind::ALL
        .into_iter()
        .map(|kind| header(kind).encode().to_vec())
        .collect()
}

/// From a source's relay, and a byte more: its answer.
pub fn header(bytes: &[u8]) {
    if let Some((first, rest)) = bytes.split_first_chunk() {
        match Header::decode(first) {
            Ok(read) => assert_eq!(read.encode(), *first),
            Err(refusal) => assert!(matches!(
                refusal,
                Refusal::NotAHeader | Refusal::Version | Refusal::UnknownKind
            )),
        }
        if let [answer, ..] = rest
            && let Some(verdict) = header::verdict(*answer)
        {
            assert_eq!(header::answer(verdict), *answer);
        }
    }
}

/// First messages of a tunnel's and of a control connection.
pub fn hellos() -> Vec<Vec<u8>> {
    let hello = |alpn: &[u8], name: String| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = vec![];
        client.write_tls(&mut bytes).unwrap();
        bytes
    };
    vec![
        hello(ALPN_TUNNEL, server_name(Uuid::from_u128(77))),
        hello(b"h2", "agent.godwit.internal".into()),
    ]
}

/// From anybody who connects: read alike in one piece and in several.
pub fn hello(bytes: &[u8]) {
    let read = |piece: usize| {
        let mut reader = HelloReader::new();
        for bytes in bytes.chunks(piece) {
            match reader.push(bytes) {
                Ok(None) => {}
                Ok(Some(hello)) => return Some(hello),
                Err(_) => return None,
            }
        }
        None
    };
    let whole = read(bytes.len().max(1));
    if let Some(migration) = whole.as_ref().and_then(|hello| hello.tunnel()) {
        let hello = whole.as_ref().unwrap();
        assert_eq!(hello.sni.as_deref(), Some(server_name(migration).as_str()));
        assert_eq!(hello.alpn, [ALPN_TUNNEL]);
    }
    assert_eq!(read(61), whole);
}

/// Orders, answers and events. The first byte says whether a relay reads them or an agent.
pub fn messages() -> Vec<Vec<u8>> {
    let credentials = Credentials {
        authorities: "a".into(),
        chain: "b".into(),
        key: "c".into(),
    };
    let begin = |end| {
        Order::Begin(Begin {
            migration: Uuid::from_u128(1),
            end,
            peer: "spiffe://godwit.dev/godwit/host/a".into(),
            credentials: credentials.clone(),
        })
    };
    let destination = ([192, 0, 2, 1], 16514).into();
    let orders = [
        begin(End::Source { destination }),
        begin(End::Destination),
        Order::Renew(credentials.clone()),
        Order::Open(opening()),
        Order::Listen {
            path: Some("/run/x".into()),
            uid: 7,
            channels: vec![opening(), opening()],
        },
        Order::Expect {
            opening: opening(),
            path: None,
        },
        Order::Arrived { read: vec![1, 2, 3] },
        Order::Status,
        Order::Close,
    ];
    let channel = opening().channel;
    let status = Status {
        version: 1,
        task: Some(Task {
            migration: Uuid::from_u128(1),
            role: Role::Source,
        }),
        channels: vec![ChannelStatus {
            channel,
            state: ChannelState::Up,
            sent: 1,
            received: 2,
        }],
        rejected: 3,
    };
    let said = [
        Said::Answer(Answer::Done),
        Said::Answer(Answer::Status(status)),
        Said::Event(Event::Up { channel }),
        Said::Event(Event::Ended {
            channel,
            sent: 1,
            received: 2,
            ending: Ending::End,
        }),
        Said::Event(Event::Stranger { uid: 0 }),
    ];
    let mut messages: Vec<_> = orders
        .iter()
        .map(|order| [vec![0], serde_json::to_vec(order).unwrap()].concat())
        .collect();
    messages.extend(
        said.iter()
            .map(|said| [vec![1], serde_json::to_vec(said).unwrap()].concat()),
    );
    messages
}

/// As [`messages`]: a relay that was taken over is no more trusted than a peer.
pub fn relay(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    if which % 2 == 0 {
        if let Ok(order) = serde_json::from_slice::<Order>(bytes) {
            let written = serde_json::to_vec(&order).unwrap();
            let again: Order = serde_json::from_slice(&written).unwrap();
            assert_eq!(serde_json::to_vec(&again).unwrap(), written);
        }
    } else if let Ok(said) = serde_json::from_slice::<Said>(bytes) {
        let written = serde_json::to_vec(&said).unwrap();
        assert_eq!(serde_json::from_slice::<Said>(&written).unwrap(), said);
    }
}
