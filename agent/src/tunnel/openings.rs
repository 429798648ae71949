//! The channels of a tunnelled stream, and what opens each.
//!
//! The two agents share one secret of 32 bytes, which the destination's draws. A stream over one connection has one
//! channel, and the secret is its token. Over several each channel has a token of its own that is made from the
//! secret: who has seen one opens no other with it.

use godwit_relay::channel::{Channel, ChannelKind, Token};
use godwit_relay::order::Opening;
use uuid::Uuid;

use crate::derivation::derive;

/// Parts what is made from a secret here from anything else that may ever be.
const SALT: &[u8] = b"godwit tunnel 1";

/// A stream's channels in the order in which the hypervisor makes them: the one that carries everything but memory's
/// pages, then as many as memory is spread over.
pub(super) fn of_stream(migration: Uuid, secret: &Token, connections: u32) -> Vec<Opening> {
    if connections <= 1 {
        return vec![Opening {
            channel: memory(),
            token: secret.clone(),
        }];
    }
    let spread = (0..u16::try_from(connections).unwrap_or(u16::MAX))
        .map(|number| Channel::new(ChannelKind::Multifd, number));
    std::iter::once(memory())
        .chain(spread)
        .filter_map(|channel| {
            let token = token(migration, secret, channel)?;
            Some(Opening { channel, token })
        })
        .collect()
}

fn memory() -> Channel {
    Channel::new(ChannelKind::Memory, 0)
}

/// A channel's own token.
fn token(migration: Uuid, secret: &Token, channel: Channel) -> Option<Token> {
    let purpose: [&[u8]; 3] = [
        migration.as_bytes(),
        &[channel.kind.code()],
        &channel.number.to_be_bytes(),
    ];
    derive(SALT, secret.as_bytes(), &purpose).map(Token::from_bytes)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;
    use godwit_relay::channel::TOKEN;

    #[test]
    fn one_connection_is_one_channel_and_the_secret_its_token() {
        let secret = Token::from_bytes([7; TOKEN]);
        let openings = of_stream(Uuid::from_u128(1), &secret, 1);
        assert_eq!(openings.len(), 1);
        assert_eq!(openings[0].channel, memory());
        assert!(openings[0].token.is(&secret));
    }

    #[test]
    fn each_channel_of_several_has_a_token_of_its_own_that_both_agents_make() {
        let secret = Token::from_bytes([7; TOKEN]);
        let (migration, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let openings = of_stream(migration, &secret, 4);
        let names: Vec<String> = openings.iter().map(|each| each.channel.to_string()).collect();
        assert_eq!(
            names,
            ["memory 0", "multifd 0", "multifd 1", "multifd 2", "multifd 3"]
        );
        let again = of_stream(migration, &secret, 4);
        let elsewhere = of_stream(other, &secret, 4);
        for (at, opening) in openings.iter().enumerate() {
            assert!(opening.token.is(&again[at].token));
            assert!(!opening.token.is(&elsewhere[at].token) && !opening.token.is(&secret));
            let like_it = openings.iter().filter(|one| one.token.is(&opening.token));
            assert_eq!(like_it.count(), 1);
        }
    }
}
