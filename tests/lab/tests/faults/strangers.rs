//! Strangers at the ports, before and during a migration: they get nothing, and disturb nobody.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_lab::hosts::AGENT_PORT;
use godwit_lab::{Lab, processes};
use rustix::process::Signal;

use crate::attempt::{Attempt, End, when_journaled};
use crate::crashes::agent;
use crate::guest::{Guest, PATIENCE, until};

/// Things that nobody who belongs here says.
const GARBAGE: [&[u8]; 4] = [
    b"",
    b"\x00",
    b"GET / HTTP/1.1\r\nHost: godwit\r\n\r\n",
    &[0x16, 0x03, 0x03, 0xff, 0xff, 0x01],
];

/// Says something and is thrown out, or leaves.
fn says(address: SocketAddr, words: &[u8]) -> anyhow::Result<usize> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // It may be thrown out before it has said all.
    let _ = stream
        .write_all(words)
        .and_then(|()| stream.shutdown(std::net::Shutdown::Write));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Ok(answer.len())
}

pub async fn garbage_on_the_agent_port_disturbs_nobody(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    // These say nothing, and stay.
    let mut idle = Vec::new();
    for number in 1..=2 {
        let address = SocketAddr::new(lab.host(number)?.address, AGENT_PORT);
        idle.push(TcpStream::connect_timeout(&address, PATIENCE)?);
        for words in GARBAGE {
            says(address, words)?;
        }
        says(address, &[0xa5; 1 << 20])?;
    }
    let attempt = Attempt::order(lab, &guest.name, "h2").await?;
    attempt.settles(lab, guest, &[End::Moved]).await?;
    drop(idle);
    Ok(())
}

pub async fn strangers_on_the_migration_port_get_nothing(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let source = agent(lab, 1)?;
    let attempt = Attempt::order(lab, &guest.name, "h2").await?;
    let stop = source.clone();
    // The door is open, and the one it is for does not come yet.
    when_journaled(attempt.journal(lab, 2)?, "Prepared", move || {
        processes::signal(&stop, Signal::STOP)
    })
    .await?;
    let outcome = async {
        let host = lab.host(2)?;
        let port = until("the door is open", async || {
            Ok(host.listening()?.into_iter().find(|port| *port != AGENT_PORT))
        })
        .await?;
        let address = SocketAddr::new(host.address, port);
        let idle = TcpStream::connect_timeout(&address, Duration::from_secs(5)).context("the idle one")?;
        for words in GARBAGE {
            ensure!(says(address, words)? == 0, "a stranger was answered");
        }
        ensure!(says(address, &[0xa5; 4096])? == 0, "a stranger was answered");
        anyhow::Ok(idle)
    }
    .await;
    processes::signal(&source, Signal::CONT);
    let idle = outcome?;
    attempt.settles(lab, guest, &[End::Moved]).await?;
    drop(idle);
    Ok(())
}
