//! What breaks, and who is turned away.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_lab::Lab;
use serde_json::{Value, json};

use crate::setting::{clear, ended, is_true, lives_on, start, succeeds};
use crate::ways::{ask, heavy, limit, no_relay_is_left, relays, travels};

/// A tunnelled migration that would take long.
fn long() -> Value {
    json!({"transport": "Tunnelled", "tuning": {"bandwidth": "2Mi"}})
}

/// The failure's reason of a migration that has ended.
pub async fn fails(lab: &Lab, name: &str) -> anyhow::Result<String> {
    let migration = ended(lab, name).await?;
    ensure!(is_true(&migration, "Failed"), "{:?}", migration.status);
    let failure = migration.status.and_then(|status| status.failure);
    let failure = failure.context("a failure")?;
    println!("  {}: {}", failure.reason, failure.message);
    Ok(failure.reason)
}

pub async fn an_agent_killed_in_mid_stream_takes_the_tunnel_up_again(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, heavy("steady")).await?;
    ask(lab, &guest, "steady-1", &lab.hosts[1], long()).await?;
    travels(lab, "steady-1").await?;
    let before: Vec<_> = lab.hosts.iter().map(relays).collect();
    for number in [1, 2] {
        lab.host(number)?.kill_agent();
        lab.start_agent(number)?;
    }
    lab.wait_until_ready().await?;
    let after: Vec<_> = lab.hosts.iter().map(relays).collect();
    ensure!(
        before == after && before.iter().all(|relays| relays.len() == 1),
        "{before:?}, {after:?}"
    );
    limit(lab, "steady-1", "0").await?;
    succeeds(lab, "steady-1").await?;
    lives_on(lab, &guest, 2, 2).await?;
    no_relay_is_left(lab).await
}

/// A ClientHello for the tunnel of a migration, as rustls makes it.
fn tunnel_hello(server_name: &str) -> Vec<u8> {
    // Type 22, TLS 1.3 alone, one cipher, one group, the tunnel's protocol, this server name.
    let name = server_name.as_bytes();
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let extension = |kind: u16, body: Vec<u8>| {
        let mut all = kind.to_be_bytes().to_vec();
        all.extend(length(body.len()));
        all.extend(body);
        all
    };
    let mut sni = length(name.len() + 3).to_vec();
    sni.push(0);
    sni.extend(length(name.len()));
    sni.extend(name);
    let protocol = b"godwit-tunnel/1";
    let mut alpn = length(protocol.len() + 1).to_vec();
    alpn.push(u8::try_from(protocol.len()).unwrap());
    alpn.extend(protocol);
    let mut share = vec![0, 0x1d, 0, 32];
    share.extend([9; 32]);
    let mut shares = length(share.len()).to_vec();
    shares.extend(share);
    let mut extensions = Vec::new();
    extensions.extend(extension(0, sni));
    extensions.extend(extension(10, vec![0, 2, 0, 0x1d]));
    extensions.extend(extension(13, vec![0, 2, 4, 3]));
    extensions.extend(extension(16, alpn));
    extensions.extend(extension(43, vec![2, 3, 4]));
    extensions.extend(extension(51, shares));
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0x13, 1, 1, 0]);
    hello.extend(length(extensions.len()));
    hello.extend(extensions);
    let mut message = vec![22, 3, 1];
    message.extend(length(hello.len() + 4));
    message.extend([1, 0]);
    message.extend(length(hello.len()));
    message.extend(hello);
    message
}

/// What is sent is not answered, and the connection is closed within the time for a handshake.
fn is_turned_away(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(bytes)?;
    let mut answer = Vec::new();
    // Reset or closed, both will do; a time-out will not.
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).context("the connection is not closed"),
    }
    Ok(())
}

pub async fn strangers_at_the_agent_port(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, heavy("visited")).await?;
    ask(lab, &guest, "visited-1", &lab.hosts[1], long()).await?;
    travels(lab, "visited-1").await?;
    let uid = kube::ResourceExt::uid(&godwit_lab::guest::migrations(lab).get("visited-1").await?);
    let uid = uid.context("a UID")?;
    let address = SocketAddr::new(lab.hosts[1].address, godwit_lab::hosts::AGENT_PORT);
    let turned_away = tokio::task::spawn_blocking(move || {
        // Silent ones, which meanwhile hold no more than their own places.
        let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(address)).collect();
        is_turned_away(address, b"GET / HTTP/1.1\r\n\r\n")?;
        let unknown = "00000000-0000-4000-8000-000000000000.tunnel.godwit.internal";
        is_turned_away(address, &tunnel_hello(unknown))?;
        is_turned_away(address, &tunnel_hello("node-b"))?;
        // The right migration, and then no handshake that would hold.
        let mut known = tunnel_hello(&format!("{uid}.tunnel.godwit.internal"));
        known.extend([22, 3, 3, 0, 4, 1, 2, 3, 4]);
        is_turned_away(address, &known)?;
        drop(silent);
        anyhow::Ok(())
    });
    turned_away.await??;
    limit(lab, "visited-1", "0").await?;
    succeeds(lab, "visited-1").await?;
    lives_on(lab, &guest, 2, 2).await
}

pub async fn plain_text_is_refused_where_a_host_forbids_it(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, heavy("guarded")).await?;
    let path = lab.hosts[1].configuration();
    let before = std::fs::read_to_string(&path)?;
    let mut configuration: Value = serde_json::from_str(&before)?;
    configuration["refusePlainText"] = true.into();
    std::fs::write(&path, configuration.to_string())?;
    lab.restart_agent(2)?;
    lab.wait_until_ready().await?;
    let plain = json!({"security": {"require": "None"}});
    ask(lab, &guest, "guarded-1", &lab.hosts[1], plain).await?;
    let reason = fails(lab, "guarded-1").await?;
    ensure!(reason == "PlainTextRefused", "{reason}");
    lives_on(lab, &guest, 1, 1).await?;
    ask(lab, &guest, "guarded-2", &lab.hosts[1], json!({})).await?;
    succeeds(lab, "guarded-2").await?;
    lives_on(lab, &guest, 2, 2).await?;
    std::fs::write(&path, before)?;
    lab.restart_agent(2)?;
    lab.wait_until_ready().await
}
