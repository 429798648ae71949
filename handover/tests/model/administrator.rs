//! Hosts that are gone for good, and what an administrator says of them. He looks at the host before he calls it fenced;
//! when he does, and whether he does it before all else has come to rest, is anybody's guess.

use crate::action::{Action, Fault, Said};
use crate::migration::Migration;
use crate::mutants::Mutant;
use crate::record::Record;
use crate::record_change::Word;
use crate::resolution::ResolutionAction;
use crate::shared::Shared;
use crate::world::{World, terms};

const ALL: [Said; 3] = [Said::Fenced, Said::Lost, Said::Resume];

impl Migration {
    /// Hosts are lost only where that is asked for: every history with one has all that an administrator may say in it.
    pub fn loses_hosts(&self) -> bool {
        let lost = [Fault::SourceHostLost, Fault::DestinationHostLost];
        self.only
            .is_some_and(|only| lost.iter().any(|fault| only.contains(fault)))
    }

    fn word(&self, w: &World, said: Said) -> Option<Word> {
        let terms = terms();
        let believed = self.is(Mutant::FenceUnproved);
        let fenced: Vec<String> = [
            (w.source_gone, terms.source),
            (w.destination_gone || believed, terms.destination),
        ]
        .into_iter()
        .filter_map(|(gone, host)| gone.then_some(host))
        .collect();
        (!fenced.is_empty()).then(|| Word {
            // One of each kind and set of hosts: who says the same again changes nothing.
            uid: format!("{said:?} {}", fenced.join(" ")),
            by: String::new(),
            epoch: i64::try_from(terms.epoch).unwrap_or(0),
            migration: Some(terms.migration),
            fenced,
            action: match said {
                Said::Fenced => ResolutionAction::Wait,
                Said::Lost => ResolutionAction::ColdStart,
                Said::Resume => ResolutionAction::ResumeSource,
            },
        })
    }

    fn heard(&self, w: &World, said: Said) -> Option<Record> {
        let word = self.word(w, said)?;
        if self.is(Mutant::ResumedAfterStart) && said == Said::Resume {
            return w.record.reverted_whatever_was_started();
        }
        let heard = w.record.hear(&word)?;
        // What adds nothing to what was said before is not said.
        let (old, new) = (w.record.view(), heard.view());
        let facts = |view: &godwit_handover::RecordView| {
            let word = view.word.as_ref();
            (
                view.decision,
                word.map(|word| (word.migration.clone(), word.fenced.clone(), word.lost)),
            )
        };
        (facts(&old) != facts(&new)).then_some(heard)
    }

    fn afresh(&self, w: &World) -> Option<Record> {
        let over = w.drivers.iter().all(crate::driving::Seat::ended);
        if !over || w.afresh {
            return None;
        }
        w.record.start_afresh(&self.word(w, Said::Lost)?)
    }

    /// What he may say now.
    pub fn administrator(&self, w: &World, actions: &mut Vec<Action>) {
        let speaks = w.source_gone || w.destination_gone || self.is(Mutant::FenceUnproved);
        if !speaks {
            return;
        }
        actions.extend(
            ALL.into_iter()
                .filter(|said| self.heard(w, *said).is_some())
                .map(Action::Say),
        );
        if self.afresh(w).is_some() {
            actions.push(Action::ColdStart);
        }
    }

    pub fn say(&self, w: &mut World, said: Said) {
        if let Some(record) = self.heard(w, said) {
            w.record = Shared::new(record);
        }
    }

    pub fn start_afresh(&self, w: &mut World) {
        if let Some(record) = self.afresh(w) {
            w.record = Shared::new(record);
            w.afresh = true;
        }
    }
}
