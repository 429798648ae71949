//! Writes the CRD manifests, one file each, into the directory given as the only argument.

use std::path::PathBuf;

use godwit_crds::{
    GuestRecord, VirtualMachine, VirtualMachineHost, VirtualMachineMigration, VirtualMachineResolution,
};
use kube::CustomResourceExt;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        return Err("usage: generate DIRECTORY".into());
    };
    let directory = PathBuf::from(directory);
    std::fs::create_dir_all(&directory)?;
    for crd in [
        VirtualMachine::crd(),
        VirtualMachineHost::crd(),
        VirtualMachineMigration::crd(),
        VirtualMachineResolution::crd(),
        GuestRecord::crd(),
    ] {
        let name = crd.metadata.name.clone().ok_or("a CRD without a name")?;
        let yaml = serde_saphyr::to_string(&crd)?;
        std::fs::write(
            directory.join(format!("{name}.yaml")),
            format!("# Generated from the types in crds/ by `make generate`. Do not edit.\n{yaml}"),
        )?;
    }
    Ok(())
}
