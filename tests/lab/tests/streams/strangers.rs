//! Who has no business in a tunnel, and who has and breaks the rules: each is refused by name, and a migration that goes
//! on meanwhile is not touched. The strangers are this test itself; the rule-breakers are what it has put in the place of
//! the source's relay (`played.rs`).

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use godwit_crds::migration::ControlFlow;
use godwit_lab::Lab;
use godwit_lab::certificates::{Authority, Subject, host_identity};
use godwit_lab::hosts::AGENT_PORT;
use godwit_relay::channel::{Channel, ChannelKind, Token};
use godwit_relay::header::Header;
use godwit_relay::order::Credentials;
use uuid::Uuid;

use crate::attempt::{End, Ended};
use crate::guest::until;
use crate::moments::{Moment, Traveller, Trip, Way, at};
use crate::played::{DIARY, PART, Part, connect, noted, present};
use crate::setting::cancel;
use crate::ways::relays;

/// What an authority gives to somebody of this name.
fn credentials(issuer: &Authority, trusted: &Authority, uri: &str) -> anyhow::Result<Credentials> {
    let issued = issuer.issue(&Subject {
        common_name: "somebody".to_owned(),
        uris: vec![uri.to_owned()],
        ..Subject::default()
    })?;
    Ok(Credentials {
        authorities: trusted.certificate().to_owned(),
        chain: issued.certificate,
        key: issued.key,
    })
}

/// How often a host's agent has written this about a migration.
fn said(lab: &Lab, host: usize, migration: Uuid, words: &str) -> anyhow::Result<usize> {
    let path = lab.records().join(format!("logs/agent-h{host}.log"));
    let log = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let migration = migration.to_string();
    let lines = log
        .lines()
        .filter(|line| line.contains(&migration) && line.contains(words));
    Ok(lines.count())
}

/// Waits until a host's agent has told of so many connections turned away for this reason.
async fn told(lab: &Lab, host: usize, migration: Uuid, reason: &str, times: usize) -> anyhow::Result<()> {
    let what = format!("h{host}'s agent tells {times} times that {reason:?}");
    until(&what, async || {
        let lines = said(lab, host, migration, reason)?;
        Ok((lines >= times).then_some(()))
    })
    .await
}

pub async fn strangers_get_no_channel(lab: &mut Lab) -> anyhow::Result<()> {
    let mut traveller = Traveller::start(lab, "hermit").await?;
    let trip = traveller
        .leaves(lab, Way::tunnelled(ControlFlow::PeerToPeer))
        .await?;
    ensure!(at(lab, &trip, Moment::PreCopy, |_| Ok(()), Ok).await?);
    let migration = Uuid::parse_str(&trip.attempt.uid)?;
    let address = SocketAddr::new(lab.hosts[1].address, AGENT_PORT);
    let before: Vec<_> = lab.hosts.iter().map(relays).collect();

    let other = Authority::new("another authority")?;
    let source = host_identity("h1");
    for (who, uri, issuer) in [
        ("another authority's h1", source.as_str(), &other),
        ("a third host", &host_identity("h3"), &lab.authority),
        ("the destination itself", &host_identity("h2"), &lab.authority),
        (
            "the controller",
            godwit_lab::certificates::CONTROLLER_IDENTITY,
            &lab.authority,
        ),
    ] {
        let somebody = credentials(issuer, &lab.authority, uri)?;
        let heard = tokio::task::spawn_blocking(move || {
            let mut tunnel = connect(address, migration, &somebody)?;
            Ok::<_, anyhow::Error>(present(&mut tunnel, b"GDWT"))
        });
        let heard = heard.await??;
        println!("  {who}: {heard:?}");
        ensure!(heard.is_err(), "{who} was answered: {heard:?}");
    }
    // Each is a handshake that failed, and the destination's agent says so.
    told(lab, 2, migration, "the handshake failed", 4).await?;

    // Whoever has the source's own certificate still has no token, and the only channel is up already.
    let thief = credentials(&lab.authority, &lab.authority, &source)?;
    for (channel, refusal) in [
        (Channel::new(ChannelKind::Memory, 0), 9),
        (Channel::new(ChannelKind::Recovery, 0), 9),
    ] {
        let header = Header {
            migration,
            channel,
            token: Token::generate()?,
        };
        let thief = thief.clone();
        let heard = tokio::task::spawn_blocking(move || {
            let mut tunnel = connect(address, migration, &thief)?;
            let answer = present(&mut tunnel, &header.encode())?;
            // And an end, which no one can take for a cut.
            ensure!(tunnel.read(&mut [0; 16])? == 0, "more was said");
            Ok(answer)
        });
        let heard = heard.await??;
        ensure!(heard == refusal, "{channel}: {heard}");
    }
    told(lab, 2, migration, "one channel too many", 2).await?;

    let after: Vec<_> = lab.hosts.iter().map(relays).collect();
    ensure!(before == after, "{before:?}, {after:?}");
    trip.goes_on(lab).await?;
    traveller.settles(lab, &trip, &[End::Moved], "strangers").await?;
    traveller.is_whole(lab)
}

/// Puts this test in the place of a host's relay, for the agent that is started next.
struct Stage {
    directory: PathBuf,
}

impl Stage {
    /// Host 1's agent takes the program beside it for its relay: it is started from a place where that is this test.
    async fn set(lab: &mut Lab) -> anyhow::Result<Self> {
        let directory = lab.hosts[0].directory.join("stage");
        std::fs::create_dir(&directory)?;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        let agent = lab.host(1)?.program().to_owned();
        for (from, name) in [
            (agent, "godwit-agent"),
            (std::env::current_exe()?, "godwit-relay"),
        ] {
            let to = directory.join(name);
            std::fs::copy(&from, &to).with_context(|| from.display().to_string())?;
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755))?;
        }
        let diary = directory.join(DIARY);
        std::fs::write(&diary, "")?;
        // The relay's user writes it.
        std::fs::set_permissions(&diary, std::fs::Permissions::from_mode(0o666))?;
        let stage = Self { directory };
        restart(lab, &stage.directory.join("godwit-agent")).await?;
        Ok(stage)
    }

    /// Says what is to be played next.
    fn plays(&self, part: Part) -> anyhow::Result<()> {
        std::fs::write(self.directory.join(PART), serde_json::to_vec(&part)?)?;
        Ok(std::fs::write(self.directory.join(DIARY), "")?)
    }

    fn diary(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.directory.join(DIARY))?)
    }
}

async fn restart(lab: &mut Lab, program: &Path) -> anyhow::Result<()> {
    lab.host(1)?.run_agent_from(program.to_owned());
    lab.restart_agent(1)?;
    lab.wait_until_ready().await
}

/// Has these parts played by host 1's relay, one migration each, and puts the right one back.
async fn played(
    lab: &mut Lab,
    name: &str,
    acts: impl AsyncFnOnce(&mut Lab, &mut Traveller, &Stage) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut traveller = Traveller::start(lab, name).await?;
    let right = lab.host(1)?.program().to_owned();
    let stage = Stage::set(lab).await?;
    let outcome = acts(lab, &mut traveller, &stage).await;
    restart(lab, &right).await?;
    std::fs::remove_dir_all(&stage.directory)?;
    outcome?;
    // An honest relay does it.
    let trip = traveller
        .leaves(lab, Way::tunnelled(ControlFlow::PeerToPeer))
        .await?;
    trip.goes_on(lab).await?;
    traveller.settles(lab, &trip, &[End::Moved], "honest").await?;
    traveller.is_whole(lab)
}

async fn leaves(
    lab: &mut Lab,
    traveller: &mut Traveller,
    stage: &Stage,
    part: Part,
) -> anyhow::Result<(Trip, Uuid)> {
    stage.plays(part)?;
    let trip = traveller
        .leaves(lab, Way::tunnelled(ControlFlow::PeerToPeer))
        .await?;
    let migration = Uuid::parse_str(&trip.attempt.uid)?;
    Ok((trip, migration))
}

async fn stays(lab: &Lab, traveller: &mut Traveller, trip: &Trip, part: Part) -> anyhow::Result<Ended> {
    let ended = traveller.settles(lab, trip, &[End::Stays], part).await?;
    ensure!(ended.reason == "StreamFailed", "{part:?}: {ended:?}");
    Ok(ended)
}

/// Shows its token for another channel than the one that it is for.
async fn misuses(
    lab: &mut Lab,
    traveller: &mut Traveller,
    stage: &Stage,
    (part, answer, reason): (Part, &str, &str),
) -> anyhow::Result<()> {
    let (trip, migration) = leaves(lab, traveller, stage, part).await?;
    let ended = stays(lab, traveller, &trip, part).await?;
    ensure!(ended.message.contains(reason), "{ended:?}");
    told(lab, 2, migration, reason, 1).await?;
    let diary = stage.diary()?;
    ensure!(noted(&diary, "the wrong one")? == answer, "{diary}");
    // The token is spent with it.
    ensure!(noted(&diary, "the right one")? == "6", "{diary}");
    Ok(())
}

/// Breaks its stream in the middle.
async fn breaks_off(
    lab: &mut Lab,
    traveller: &mut Traveller,
    stage: &Stage,
    (part, seen): (Part, &str),
) -> anyhow::Result<()> {
    let (trip, migration) = leaves(lab, traveller, stage, part).await?;
    stays(lab, traveller, &trip, part).await?;
    told(lab, 2, migration, seen, 1).await?;
    let diary = stage.diary()?;
    ensure!(diary.lines().any(|line| line == "broken"), "{diary}");
    Ok(())
}

/// Tries all that opens nothing, and then does what it should.
async fn tries_all(lab: &mut Lab, traveller: &mut Traveller, stage: &Stage) -> anyhow::Result<()> {
    let (trip, migration) = leaves(lab, traveller, stage, Part::TriesAll).await?;
    trip.goes_on(lab).await?;
    let ended = traveller.settles(lab, &trip, &[End::Moved], Part::TriesAll).await;
    let diary = stage.diary()?;
    ended.with_context(|| diary.clone())?;
    for (what, answer) in [
        ("not a header", "1"),
        ("a version", "2"),
        ("a kind", "3"),
        ("a migration", "4"),
        ("a token", "5"),
        ("too much", "5"),
        ("the right one", "0"),
        ("the token again", "6"),
        ("one too many", "9"),
    ] {
        ensure!(noted(&diary, what)? == answer, "{what}: {diary}");
    }
    for (reason, times) in [
        ("what came is not a channel's header", 1),
        ("the header's version is not spoken", 1),
        ("the channel's kind is not known", 1),
        ("the channel is of another migration", 1),
        ("the token is not one that the destination's agent gave", 2),
        ("it ended the connection and had not said all", 1),
        ("it closed the connection", 1),
        ("the token was used before", 1),
        ("there is one channel too many", 1),
    ] {
        told(lab, 2, migration, reason, times).await?;
    }
    Ok(())
}

pub async fn a_source_that_breaks_the_rules_is_refused_by_name(lab: &mut Lab) -> anyhow::Result<()> {
    played(lab, "candid", async |lab, traveller, stage| {
        let kind = (Part::WrongKind, "7", "the token is for a channel of another kind");
        misuses(lab, traveller, stage, kind).await?;
        breaks_off(lab, traveller, stage, (Part::Fin, "closed without an end")).await?;
        // In order for TLS, and in the middle of what a hypervisor says: that one knows.
        breaks_off(lab, traveller, stage, (Part::End, "ending=End")).await?;
        // It leaves the host with this one.
        tries_all(lab, traveller, stage).await
    })
    .await
}

/// For some of it a deadline has to run out.
pub async fn a_source_that_breaks_other_rules_is_refused_too(lab: &mut Lab) -> anyhow::Result<()> {
    played(lab, "laconic", async |lab, traveller, stage| {
        let number = (
            Part::WrongNumber,
            "8",
            "the token is for a channel with another number",
        );
        misuses(lab, traveller, stage, number).await?;
        breaks_off(lab, traveller, stage, (Part::Garbage, "Cut { side: Peer")).await?;
        let part = Part::HalfAHeader;
        let (trip, migration) = leaves(lab, traveller, stage, part).await?;
        stays(lab, traveller, &trip, part).await?;
        told(lab, 2, migration, "it was not open within the time allowed", 1).await?;
        // It never comes, and says that it has: a user who cancels gets rid of both ends.
        let part = Part::NeverComes;
        let (trip, _) = leaves(lab, traveller, stage, part).await?;
        let open = "is open";
        told(lab, 1, Uuid::parse_str(&trip.attempt.uid)?, open, 1).await?;
        cancel(lab, &trip.attempt.name).await?;
        let ended = traveller.settles(lab, &trip, &[End::Stays], part).await?;
        ensure!(ended.reason == "Cancelled", "{ended:?}");
        Ok(())
    })
    .await
}
