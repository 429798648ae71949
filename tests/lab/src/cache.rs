//! Where things are: the checkout, the built programs, the cached tools, the kernel for test guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// The version of Kubernetes whose programs `tests/tools/install` builds.
pub const KUBERNETES_VERSION: &str = "1.37.2";

/// The top of the checkout.
#[must_use]
pub fn workspace() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_directory
        .ancestors()
        .nth(2)
        .unwrap_or(crate_directory)
        .to_owned()
}

/// The directory outside the checkout in which built tools and fetched files are kept.
#[must_use]
pub fn directory() -> PathBuf {
    if let Some(set) = variable("GODWIT_CACHE") {
        return set;
    }
    variable("XDG_CACHE_HOME")
        .unwrap_or_else(|| variable("HOME").unwrap_or_else(std::env::temp_dir).join(".cache"))
        .join("godwit")
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Finds a tool of the control plane: `kube-apiserver`, `etcd`, `kube-controller-manager`, `kubectl` or `helm`.
/// The directory in `KUBEBUILDER_ASSETS` comes first, as `setup-envtest` leaves it, then the cache.
///
/// # Errors
/// When it is in neither place; the message says how to get it.
pub fn tool(name: &str) -> anyhow::Result<PathBuf> {
    let cached = directory()
        .join("tools")
        .join(format!("k8s-{KUBERNETES_VERSION}"));
    let candidates = variable("KUBEBUILDER_ASSETS").into_iter().chain([cached]);
    for candidate in candidates {
        let path = candidate.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("{name} is missing: run tests/tools/install control-plane")
}

/// The Linux kernel for test guests.
///
/// # Errors
/// When it was not fetched; the message says how to get it.
pub fn kernel() -> anyhow::Result<PathBuf> {
    let path = directory().join("kernel/vmlinuz");
    if !path.is_file() {
        bail!("the test guests' kernel is missing: run tests/tools/install kernel");
    }
    Ok(path)
}

/// The directory with godwit's own programs: the one that the running program was built into.
///
/// # Errors
/// When the running program cannot tell where it is.
pub fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    let directory = own.parent().context("the running program has no directory")?;
    // Test binaries lie one level deeper.
    let directory = if directory.ends_with("deps") {
        directory.parent().unwrap_or(directory)
    } else {
        directory
    };
    Ok(directory.to_owned())
}

/// The directory under which each run keeps its logs.
///
/// # Errors
/// When the running program cannot tell where it is.
pub fn runs() -> anyhow::Result<PathBuf> {
    let programs = programs()?;
    Ok(programs.parent().unwrap_or(&programs).join("lab"))
}

/// Builds godwit's own programs with the profile of the running program, or finds them up to date.
///
/// # Errors
/// When cargo cannot be run or a program does not compile; cargo's own words go to standard error.
pub fn build_programs() -> anyhow::Result<PathBuf> {
    let directory = programs()?;
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace())
        .args(["build", "--quiet", "--profile", profile]);
    for package in ["godwit-agent", "godwit-relay", "godwit-controller", "godwit-cli"] {
        command.args(["--package", package]);
    }
    let status = command.status().context("run cargo to build godwit's programs")?;
    if !status.success() {
        bail!("cargo could not build godwit's programs ({status})");
    }
    Ok(directory)
}

/// The directory with godwit's programs as they were one protocol version ago, which are built from the repository's
/// history the first time.
///
/// # Errors
/// When the history does not reach back so far, or they do not compile; the script's own words go to standard error.
pub fn older_programs() -> anyhow::Result<PathBuf> {
    let script = workspace().join("tests/tools/older");
    let status = Command::new(&script).status().context("run tests/tools/older")?;
    if !status.success() {
        bail!("tests/tools/older could not build the older programs ({status})");
    }
    let output = Command::new(&script)
        .arg("--where")
        .output()
        .context("ask tests/tools/older")?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// Whether this process may make network namespaces.
#[must_use]
pub fn root() -> bool {
    rustix::process::geteuid().is_root()
}
