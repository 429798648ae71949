//! Which of its programs the lab runs: today's, or those of one protocol version ago.

use std::fs::Permissions;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use godwit_lab::{Lab, cache};

use crate::guest::until;

/// Whose programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Older,
    Todays,
}

/// Who runs which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    pub controller: Version,
    /// The agents', by the number of their host less one.
    pub agents: [Version; 2],
}

impl Mix {
    pub const OLDER: Self = Self {
        controller: Version::Older,
        agents: [Version::Older; 2],
    };
    pub const TODAYS: Self = Self {
        controller: Version::Todays,
        agents: [Version::Todays; 2],
    };
}

impl Version {
    /// A program of this version. The older ones are built if they are not there, and copied to where also the users can
    /// run them that relays are: nobody else looks into the cache.
    pub fn program(self, lab: &Lab, name: &str) -> anyhow::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = match self {
            Self::Todays => cache::programs()?,
            Self::Older => {
                let run = lab
                    .pool()
                    .parent()
                    .context("the pool is in the run's directory")?;
                let directory = run.join("older");
                if !directory.exists() {
                    let built = cache::older_programs()?;
                    std::fs::create_dir(&directory)?;
                    std::fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
                    for program in std::fs::read_dir(built)? {
                        let program = program?;
                        std::fs::copy(program.path(), directory.join(program.file_name()))?;
                    }
                }
                directory
            }
        };
        Ok(directory.join(name))
    }
}

/// Has a host's agent be of this version when it is started next.
pub fn install(lab: &mut Lab, host: usize, version: Version) -> anyhow::Result<()> {
    let program = version.program(lab, "godwit-agent")?;
    lab.host(host)?.run_agent_from(program);
    Ok(())
}

/// Replaces a host's agent as its deployment would: the one that runs is asked to end, and the other one begins.
pub async fn replace(lab: &mut Lab, host: usize, version: Version) -> anyhow::Result<()> {
    install(lab, host, version)?;
    lab.host(host)?.stop_agent().await?;
    lab.start_agent(host)?;
    lab.wait_until_ready().await
}

/// Replaces the controller, and waits until the other one leads and has seen what there is.
pub async fn replace_controller(lab: &mut Lab, version: Version) -> anyhow::Result<()> {
    const BEGUN: &str = "every watch has seen everything once";
    let program = version.program(lab, "godwit-controller")?;
    let log = lab.records().join("logs/controller.log");
    let begun = || {
        let text = std::fs::read_to_string(&log)?;
        Ok::<_, std::io::Error>(text.matches(BEGUN).count())
    };
    lab.run_controller_from(program.clone());
    lab.kill_controller();
    let before = begun()?;
    lab.start_controller()?;
    until("the other controller has begun", async || {
        Ok((begun()? > before).then_some(()))
    })
    .await?;
    let pid = lab.controller().context("no controller")?.pid();
    let running = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    let wanted = std::fs::canonicalize(program)?;
    ensure!(running == wanted, "{} runs", running.display());
    Ok(())
}

/// Has everybody be of the version that the mix says, while nothing moves. Journals are forgotten meanwhile, as they are
/// after a day: an older agent leaves alone whatever a newer one's speak of.
pub async fn put(lab: &mut Lab, mix: Mix) -> anyhow::Result<()> {
    for (host, version) in (1..).zip(mix.agents) {
        let program = version.program(lab, "godwit-agent")?;
        if lab.host(host)?.program() == program {
            lab.start_agent(host)?;
            continue;
        }
        lab.host(host)?.stop_agent().await?;
        let journals = lab.host(host)?.directory.join("state/journals");
        for journal in std::fs::read_dir(journals)? {
            std::fs::remove_file(journal?.path())?;
        }
        replace(lab, host, version).await?;
    }
    if lab.controller_program() != mix.controller.program(lab, "godwit-controller")? {
        replace_controller(lab, mix.controller).await?;
    }
    lab.wait_until_ready().await?;
    for host in 1..=mix.agents.len() {
        runs(lab, host, mix.agents[host - 1]).await?;
    }
    Ok(())
}

/// Waits until the program that runs as a host's agent is that version's: what a test says of a mix is to be so.
pub async fn runs(lab: &mut Lab, host: usize, version: Version) -> anyhow::Result<()> {
    let wanted = std::fs::canonicalize(version.program(lab, "godwit-agent")?)?;
    let pid = lab.host(host)?.agent().context("no agent")?.pid();
    // It is `nsenter` for a moment.
    until("the agent's program runs", async || {
        let running = std::fs::read_link(format!("/proc/{pid}/exe"))?;
        Ok((running == wanted).then_some(()))
    })
    .await?;
    ensure!(pid != 0, "the agent was left to itself");
    Ok(())
}
