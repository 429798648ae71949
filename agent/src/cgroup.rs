//! A cgroup of its own for each guest's process, so that stopping the agent's service or pod does not take the
//! guests with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The mounted control group hierarchies: one with cgroup v2, several with v1, both on mixed hosts.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// A v1 cpuset hierarchy takes no process before its sets are filled.
    cpuset: bool,
}

/// The parent of all guests' cgroups.
const PARENT: &str = "godwit";

impl Cgroups {
    /// Finds what is mounted on this host.
    pub fn discover() -> Self {
        fs::read_to_string("/proc/self/mountinfo")
            .map(|text| Self::parse(&text))
            .unwrap_or_default()
    }

    fn parse(mounts: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mounts.lines() {
            // "36 35 98:0 /root /mount options … - type source super-options"
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount) = before.split(' ').nth(4) else {
                continue;
            };
            let mut after = after.split(' ');
            let (Some(kind), options) = (after.next(), after.nth(1).unwrap_or_default()) else {
                continue;
            };
            let cpuset = match kind {
                "cgroup2" => false,
                "cgroup" => options.split(',').any(|o| o == "cpuset"),
                _ => continue,
            };
            let hierarchy = Hierarchy {
                mount: mount.into(),
                cpuset,
            };
            if !hierarchies.contains(&hierarchy) {
                hierarchies.push(hierarchy);
            }
        }
        Self { hierarchies }
    }

    /// Moves a process into the cgroup `name` of each hierarchy. Gives the hierarchies that did not take it, with
    /// the reason; the process runs on there as before.
    pub fn place(&self, name: &str, pid: u32) -> Vec<String> {
        self.hierarchies
            .iter()
            .filter_map(|h| {
                h.place(name, pid)
                    .err()
                    .map(|e| format!("{}: {e}", h.mount.display()))
            })
            .collect()
    }

    /// Removes the cgroup `name`, whose processes have ended. One that is not there is fine. Gives what is left.
    pub fn remove(&self, name: &str) -> Vec<String> {
        self.hierarchies
            .iter()
            .filter_map(|h| {
                let gone = match fs::remove_dir(h.mount.join(PARENT).join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Some(format!("{}: {error}", h.mount.display()))
                    }
                    Err(_) | Ok(()) => None,
                };
                // The parent goes with its last child; while there are others this fails, and is right to.
                let _ = fs::remove_dir(h.mount.join(PARENT));
                gone
            })
            .collect()
    }
}

impl Hierarchy {
    fn place(&self, name: &str, pid: u32) -> io::Result<()> {
        let parent = self.mount.join(PARENT);
        let own = parent.join(name);
        fs::create_dir_all(&own)?;
        if self.cpuset {
            fill_cpuset(&self.mount, &parent)?;
            fill_cpuset(&parent, &own)?;
        }
        fs::write(own.join("cgroup.procs"), pid.to_string())
    }
}

fn fill_cpuset(from: &Path, to: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(to.join(file))?.trim().is_empty() {
            fs::write(to.join(file), fs::read_to_string(from.join(file))?.trim())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        let found = Cgroups::parse(
            "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
             31 30 0:27 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
             32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             nonsense\n",
        );
        let mounts: Vec<_> = found
            .hierarchies
            .iter()
            .map(|h| (h.mount.to_str().unwrap(), h.cpuset))
            .collect();
        assert_eq!(
            mounts,
            [
                ("/sys/fs/cgroup/cpuset", true),
                ("/sys/fs/cgroup/systemd", false),
                ("/sys/fs/cgroup/unified", false)
            ]
        );
    }

    #[test]
    fn a_hierarchy_that_refuses_is_named_and_the_others_are_used() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let cgroups = Cgroups {
            hierarchies: vec![
                Hierarchy {
                    mount: directory.path().join("file"),
                    cpuset: false,
                },
                Hierarchy {
                    mount: directory.path().into(),
                    cpuset: false,
                },
            ],
        };
        assert_eq!(cgroups.place("host-a.guest", 42).len(), 1);
        let procs = directory.path().join("godwit/host-a.guest/cgroup.procs");
        assert_eq!(fs::read_to_string(&procs).unwrap(), "42");
        // In a real hierarchy the files vanish with the directory.
        fs::remove_file(procs).unwrap();
        assert_eq!(
            cgroups.remove("host-a.guest").len(),
            1,
            "the file is no directory"
        );
        assert!(!directory.path().join("godwit").exists());
    }
}
