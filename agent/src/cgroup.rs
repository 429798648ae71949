//! A cgroup of its own for each guest's process, so that stopping the agent's service or pod does not take the
//! guests with it, and so that no guest's process takes more of the host than its share.

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
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    /// Version 1, with its controllers.
    One(Vec<String>),
    Two,
}

/// What a guest's process may take of the host at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: u64,
    /// Processes and threads together.
    pub tasks: u64,
}

/// What can be bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Memory.
    Memory,
    /// Memory that is written to the disk of the host.
    Swap,
    /// Processes and threads.
    Tasks,
}

/// What became of an attempt to put a process into its cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// The hierarchies that did not take it, with the reason; the process runs on there as before.
    pub refused: Vec<String>,
    /// What is not bounded, with the reason.
    pub unbounded: Vec<(Resource, String)>,
}

/// The parent of all guests' cgroups.
const PARENT: &str = "godwit";

const MEBIBYTE: u64 = 1 << 20;
/// QEMU's own code and heap, translated code under TCG (1 GiB), device models, buffers of disks and streams.
const OVERHEAD: u64 = 2048 * MEBIBYTE;
/// A virtual CPU's stack and state.
const OVERHEAD_PER_CPU: u64 = 16 * MEBIBYTE;
/// One part in this many of a guest's memory, for page tables and dirty bitmaps.
const OVERHEAD_SHARE: u64 = 64;
/// Threads for disks (64), streams (two for each channel), the monitor, translation.
const TASKS: u64 = 512;

impl Limits {
    /// For a guest with this much memory, in bytes, and this many virtual CPUs. They are there to keep a process that
    /// has gone mad from taking the host with it, so they are generous: a guest that reaches one dies.
    pub fn of(memory: u64, cpus: u32) -> Self {
        let cpus = u64::from(cpus);
        Self {
            memory: memory
                .saturating_add(memory / OVERHEAD_SHARE)
                .saturating_add(OVERHEAD)
                .saturating_add(cpus.saturating_mul(OVERHEAD_PER_CPU)),
            tasks: TASKS.saturating_add(cpus),
        }
    }
}

impl Resource {
    const ALL: [Self; 3] = [Self::Memory, Self::Swap, Self::Tasks];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Swap => "swap",
            Self::Tasks => "processes",
        }
    }
}

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
            let version = match kind {
                "cgroup2" => Version::Two,
                "cgroup" => Version::One(options.split(',').map(String::from).collect()),
                _ => continue,
            };
            let hierarchy = Hierarchy {
                mount: mount.into(),
                version,
            };
            if !hierarchies.contains(&hierarchy) {
                hierarchies.push(hierarchy);
            }
        }
        Self { hierarchies }
    }

    /// Moves a process into the cgroup `name` of each hierarchy, bounded first.
    pub fn place(&self, name: &str, pid: u32, limits: Limits) -> Placed {
        let mut refused = Vec::new();
        let mut bounds = Bounds::default();
        for hierarchy in &self.hierarchies {
            let placed = hierarchy
                .make(name)
                .map(|own| bounds.set(hierarchy, &own, limits))
                .and_then(|()| hierarchy.enter(name, pid));
            if let Err(error) = placed {
                refused.push(format!("{}: {error}", hierarchy.mount.display()));
            }
        }
        Placed {
            refused,
            unbounded: bounds.unbounded(),
        }
    }

    /// What cannot be bounded on this host, for people: tried with a cgroup that is removed again.
    pub fn missing(&self, name: &str) -> Vec<String> {
        let mut bounds = Bounds::default();
        for hierarchy in &self.hierarchies {
            match hierarchy.make(name) {
                Ok(own) => bounds.set(hierarchy, &own, Limits::of(MEBIBYTE, 1)),
                Err(error) => bounds.failed(format!("{}: {error}", hierarchy.mount.display())),
            }
        }
        self.remove(name);
        bounds
            .unbounded()
            .into_iter()
            .map(|(resource, why)| format!("a guest's {} cannot be bounded: {why}", resource.name()))
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

/// What was bounded so far.
#[derive(Default)]
struct Bounds {
    bounded: Vec<Resource>,
    why_not: Vec<String>,
}

impl Bounds {
    fn set(&mut self, hierarchy: &Hierarchy, own: &Path, limits: Limits) {
        for resource in Resource::ALL {
            match hierarchy.bound(own, resource, limits) {
                Ok(true) => self.bounded.push(resource),
                Ok(false) => {}
                Err(error) => self.failed(format!("{}: {error}", own.display())),
            }
        }
    }

    fn failed(&mut self, why: String) {
        self.why_not.push(why);
    }

    fn unbounded(&self) -> Vec<(Resource, String)> {
        let why = if self.why_not.is_empty() {
            "no control group on this host does it".to_owned()
        } else {
            self.why_not.join("; ")
        };
        Resource::ALL
            .into_iter()
            .filter(|resource| !self.bounded.contains(resource))
            .map(|resource| (resource, why.clone()))
            .collect()
    }
}

impl Hierarchy {
    /// Makes a guest's cgroup.
    fn make(&self, name: &str) -> io::Result<PathBuf> {
        let parent = self.mount.join(PARENT);
        let own = parent.join(name);
        fs::create_dir_all(&own)?;
        match &self.version {
            Version::One(controllers) => {
                // A cpuset hierarchy takes no process before its sets are filled.
                if controllers.iter().any(|controller| controller == "cpuset") {
                    fill_cpuset(&self.mount, &parent)?;
                    fill_cpuset(&parent, &own)?;
                }
            }
            Version::Two => {
                delegate(&self.mount)?;
                delegate(&parent)?;
            }
        }
        Ok(own)
    }

    fn enter(&self, name: &str, pid: u32) -> io::Result<()> {
        let procs = self.mount.join(PARENT).join(name).join("cgroup.procs");
        fs::write(procs, pid.to_string())
    }

    /// Bounds a resource; `false` if that is not this hierarchy's to do.
    fn bound(&self, own: &Path, resource: Resource, limits: Limits) -> io::Result<bool> {
        let (memory, tasks) = (limits.memory.to_string(), limits.tasks.to_string());
        let is = |controller: &str| match &self.version {
            Version::One(controllers) => controllers.iter().any(|one| one == controller),
            Version::Two => false,
        };
        let set = |file: &str, value: &str| write_there(&own.join(file), value);
        match (&self.version, resource) {
            (Version::Two, Resource::Memory) => set("memory.max", &memory),
            // The file is missing where the kernel cannot swap.
            (Version::Two, Resource::Swap) => {
                Ok(set("memory.swap.max", "0")? || own.join("memory.max").exists())
            }
            (Version::Two, Resource::Tasks) => set("pids.max", &tasks),
            (Version::One(_), Resource::Memory) if is("memory") => set("memory.limit_in_bytes", &memory),
            // Memory and swap together are to be no more than memory alone; else the kernel is told to avoid it.
            (Version::One(_), Resource::Swap) if is("memory") => {
                Ok(set("memory.memsw.limit_in_bytes", &memory)? || set("memory.swappiness", "0")?)
            }
            (Version::One(_), Resource::Tasks) if is("pids") => set("pids.max", &tasks),
            (Version::One(_), Resource::Memory | Resource::Swap | Resource::Tasks) => Ok(false),
        }
    }
}

/// Writes to a control file; `false` if there is none.
fn write_there(file: &Path, value: &str) -> io::Result<bool> {
    match fs::OpenOptions::new().write(true).open(file) {
        Ok(mut file) => io::Write::write_all(&mut file, value.as_bytes()).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has a cgroup v2 hand those controllers on that it has and that are used here.
fn delegate(to_children_of: &Path) -> io::Result<()> {
    let has = fs::read_to_string(to_children_of.join("cgroup.controllers"))?;
    let hands_on = fs::read_to_string(to_children_of.join("cgroup.subtree_control"))?;
    for controller in ["memory", "pids"] {
        let in_list = |list: &str| list.split_whitespace().any(|one| one == controller);
        if in_list(&has) && !in_list(&hands_on) {
            fs::write(
                to_children_of.join("cgroup.subtree_control"),
                format!("+{controller}"),
            )?;
        }
    }
    Ok(())
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

    const LIMITS: Limits = Limits {
        memory: 4096,
        tasks: 9,
    };

    fn one(mount: &Path, controllers: &[&str]) -> Hierarchy {
        Hierarchy {
            mount: mount.into(),
            version: Version::One(controllers.iter().map(ToString::to_string).collect()),
        }
    }

    /// Control files as the kernel would make them with the directory.
    fn files(own: &Path, names: &[&str]) {
        fs::create_dir_all(own).unwrap();
        for name in names {
            fs::write(own.join(name), "").unwrap();
        }
    }

    fn read(own: &Path, file: &str) -> String {
        fs::read_to_string(own.join(file)).unwrap()
    }

    #[test]
    fn both_versions_are_found() {
        let found = Cgroups::parse(
            "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
             31 30 0:27 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
             32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             nonsense\n",
        );
        let expected = [
            one(Path::new("/sys/fs/cgroup/cpuset"), &["rw", "cpuset"]),
            one(Path::new("/sys/fs/cgroup/systemd"), &["rw", "name=systemd"]),
            Hierarchy {
                mount: "/sys/fs/cgroup/unified".into(),
                version: Version::Two,
            },
        ];
        assert_eq!(found.hierarchies, expected);
    }

    #[test]
    fn a_hierarchy_that_refuses_is_named_and_the_others_are_used() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let cgroups = Cgroups {
            hierarchies: vec![
                one(&directory.path().join("file"), &[]),
                one(directory.path(), &[]),
            ],
        };
        assert_eq!(cgroups.place("host-a.guest", 42, LIMITS).refused.len(), 1);
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

    #[test]
    fn r7_memory_swap_and_tasks_are_bounded_in_version_1() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("godwit/g");
        files(
            &own,
            &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max"],
        );
        let cgroups = Cgroups {
            hierarchies: vec![
                one(directory.path(), &["rw", "memory"]),
                one(directory.path(), &["pids"]),
            ],
        };
        let placed = cgroups.place("g", 42, LIMITS);
        assert_eq!(placed, Placed::default());
        assert_eq!(read(&own, "memory.limit_in_bytes"), "4096");
        assert_eq!(read(&own, "memory.memsw.limit_in_bytes"), "4096");
        assert_eq!(read(&own, "pids.max"), "9");
    }

    #[test]
    fn r7_memory_swap_and_tasks_are_bounded_in_version_2() {
        let directory = tempfile::tempdir().unwrap();
        let (parent, own) = (directory.path().join("godwit"), directory.path().join("godwit/g"));
        files(&own, &["memory.max", "memory.swap.max", "pids.max"]);
        fs::write(directory.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(
            directory.path().join("cgroup.subtree_control"),
            "cpu memory pids\n",
        )
        .unwrap();
        fs::write(parent.join("cgroup.controllers"), "memory\n").unwrap();
        fs::write(parent.join("cgroup.subtree_control"), "").unwrap();
        let cgroups = Cgroups {
            hierarchies: vec![Hierarchy {
                mount: directory.path().into(),
                version: Version::Two,
            }],
        };
        assert_eq!(cgroups.place("g", 42, LIMITS), Placed::default());
        assert_eq!(read(&parent, "cgroup.subtree_control"), "+memory");
        assert_eq!(
            read(directory.path(), "cgroup.subtree_control"),
            "cpu memory pids\n",
            "what is so is not done"
        );
        assert_eq!(
            (read(&own, "memory.max"), read(&own, "memory.swap.max")),
            ("4096".into(), "0".into())
        );
        assert_eq!(
            (read(&own, "pids.max"), read(&own, "cgroup.procs")),
            ("9".into(), "42".into())
        );
    }

    #[test]
    fn r7_what_a_host_cannot_bound_is_named() {
        let nothing = Cgroups::default().missing("trial");
        assert_eq!(nothing.len(), 3, "{nothing:?}");
        let directory = tempfile::tempdir().unwrap();
        // Not delegated: the directory cannot be made.
        fs::write(directory.path().join("godwit"), "").unwrap();
        let refused = Cgroups {
            hierarchies: vec![one(directory.path(), &["memory"])],
        };
        let missing = refused.missing("trial");
        assert!(
            missing
                .iter()
                .any(|words| words.contains("memory") && words.contains("Not a directory")),
            "{missing:?}"
        );
        assert_eq!(refused.place("g", 42, LIMITS).unbounded.len(), 3);
    }

    #[test]
    fn limits_grow_with_the_guest_and_leave_room() {
        let (small, large) = (Limits::of(1 << 30, 1), Limits::of(64 << 30, 32));
        assert_eq!(small.memory, (1 << 30) + (16 << 20) + OVERHEAD + (16 << 20));
        assert!(large.memory > (66 << 30) && large.tasks == TASKS + 32);
        assert_eq!(Limits::of(u64::MAX, 1).memory, u64::MAX);
    }
}
