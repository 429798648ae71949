//! The trust domain: which installation of godwit an identity belongs to.

use std::fmt;
use std::str::FromStr;

use super::IdentityError;
use crate::convert::is_subdomain;

/// The name that stands in every identity of one installation, the first part of its URI. Programs of different
/// trust domains do not talk to each other, even where they share an authority.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// What is used where nothing else is configured.
    pub const DEFAULT: &str = "godwit.dev";

    /// A trust domain of this name.
    ///
    /// # Errors
    /// [`IdentityError::TrustDomain`] if it is not a DNS name in lower case of at most 253 characters.
    pub fn new(name: impl Into<String>) -> Result<Self, IdentityError> {
        let name = name.into();
        if is_subdomain(&name) {
            Ok(Self(name))
        } else {
            Err(IdentityError::TrustDomain)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// `godwit.dev`.
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(name: &str) -> Result<Self, IdentityError> {
        Self::new(name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for name in ["godwit.dev", "prod", "a-1.example.org"] {
            assert_eq!(name.parse::<TrustDomain>().unwrap().to_string(), name);
        }
        for name in ["", ".", "Godwit.dev", "a_b", "a/b", "a:1", "-a", "a..b", "user@a"] {
            assert_eq!(
                name.parse::<TrustDomain>(),
                Err(IdentityError::TrustDomain),
                "{name}"
            );
        }
        assert!(TrustDomain::new("a".repeat(254)).is_err());
        assert_eq!(
            TrustDomain::new(TrustDomain::DEFAULT).unwrap(),
            TrustDomain::default()
        );
    }
}
