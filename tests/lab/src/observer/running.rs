//! Who ran when, by what the hypervisors themselves say: never two at once.
//!
//! Two kinds of proof, since two samples at different instants are none. The hypervisors tell when a guest was stopped
//! and let run; hosts are one machine here, so these times are of one clock. And one hypervisor is asked, then the
//! other, then the first again: where it ran both times and was not stopped in between, it ran while the other was asked.

/// Something that a hypervisor said. Times are Unix time in microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The host that the hypervisor is on.
    pub host: String,
    /// What it said.
    pub said: Said,
}

/// What a hypervisor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It was asked, and has answered.
    Status {
        /// When it was asked.
        asked_us: i64,
        /// When its answer was there.
        answered_us: i64,
        /// Whether the guest runs.
        runs: bool,
    },
    /// It has let the guest run.
    Resumed {
        /// When, by its own word.
        at_us: i64,
    },
    /// It has stopped the guest.
    Stopped {
        /// When, by its own word.
        at_us: i64,
    },
    /// It says nothing more: it has ended.
    Closed {
        /// When that was noticed.
        at_us: i64,
    },
}

/// A time for which a guest certainly ran at a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The host.
    pub host: String,
    /// When it had begun.
    pub from_us: i64,
    /// Up to when that is certain.
    pub until_us: i64,
}

/// What the sightings prove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// When it ran where, in the order in which the runs began.
    pub runs: Vec<Run>,
    /// How often a hypervisor has answered.
    pub answers: usize,
    /// How often one was asked between two questions to the other.
    pub brackets: usize,
    /// Each proof of two that ran at once.
    pub overlaps: Vec<String>,
}

impl Running {
    /// Whether the guest ever ran at a host.
    #[must_use]
    pub fn ran_at(&self, host: &str) -> bool {
        self.runs.iter().any(|run| run.host == host)
    }

    /// From the end of the last run at one host until the first run at another began, in microseconds.
    #[must_use]
    pub fn between(&self, from: &str, to: &str) -> Option<i64> {
        let left = self.runs.iter().rev().find(|run| run.host == from)?;
        let begun = self.runs.iter().find(|run| run.host == to)?;
        Some(begun.from_us - left.until_us)
    }
}

/// Judges what hypervisors said of one guest.
#[must_use]
pub fn judge_runs(seen: &[Sighting]) -> Running {
    let mut hosts: Vec<&str> = seen.iter().map(|sighting| sighting.host.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let mut running = Running::default();
    for host in &hosts {
        running.runs.extend(runs_at(host, seen));
    }
    running.runs.sort_by_key(|run| run.from_us);
    for (index, one) in running.runs.iter().enumerate() {
        let later = running.runs.iter().skip(index + 1);
        for other in later.filter(|other| other.host != one.host) {
            if other.from_us < one.until_us {
                running.overlaps.push(format!("both ran: {one:?}, {other:?}"));
            }
        }
    }
    let answers: Vec<Answer<'_>> = seen.iter().filter_map(answer).collect();
    running.answers = answers.len();
    for (index, first) in answers.iter().enumerate() {
        let rest = answers.get(index + 1..).unwrap_or_default();
        let Some(again) = rest.iter().position(|answer| answer.host == first.host) else {
            continue;
        };
        let (between, second) = (rest.get(..again).unwrap_or_default(), rest.get(again));
        let Some(second) = second else { continue };
        for other in between {
            running.brackets += 1;
            let certain = first.runs && second.runs && other.runs;
            if certain && !stopped_within(first, second, seen) {
                running
                    .overlaps
                    .push(format!("between two times: {first:?}, {other:?}, {second:?}"));
            }
        }
    }
    running
}

/// An answer, in the order in which they were asked for.
#[derive(Debug)]
struct Answer<'a> {
    host: &'a str,
    asked_us: i64,
    answered_us: i64,
    runs: bool,
}

fn answer(sighting: &Sighting) -> Option<Answer<'_>> {
    match sighting.said {
        Said::Status {
            asked_us,
            answered_us,
            runs,
        } => Some(Answer {
            host: &sighting.host,
            asked_us,
            answered_us,
            runs,
        }),
        Said::Resumed { .. } | Said::Stopped { .. } | Said::Closed { .. } => None,
    }
}

fn stopped_within(first: &Answer<'_>, second: &Answer<'_>, seen: &[Sighting]) -> bool {
    seen.iter().any(|sighting| match sighting.said {
        Said::Stopped { at_us } => {
            sighting.host == first.host && (first.asked_us..=second.answered_us).contains(&at_us)
        }
        Said::Status { .. } | Said::Resumed { .. } | Said::Closed { .. } => false,
    })
}

/// The runs at one host. What is not certain is left out: two that ran at once have to be proved.
fn runs_at(host: &str, seen: &[Sighting]) -> Vec<Run> {
    let mut own: Vec<Said> = seen
        .iter()
        .filter(|sighting| sighting.host == host)
        .map(|sighting| sighting.said)
        .collect();
    own.sort_by_key(|said| match said {
        Said::Status { answered_us, .. } => *answered_us,
        Said::Resumed { at_us } | Said::Stopped { at_us } | Said::Closed { at_us } => *at_us,
    });
    let mut runs = Vec::new();
    let mut open: Option<Run> = None;
    let mut stopped_us = i64::MIN;
    for said in own {
        match said {
            Said::Resumed { at_us } => {
                open.get_or_insert_with(|| Run {
                    host: host.to_owned(),
                    from_us: at_us,
                    until_us: at_us,
                });
            }
            Said::Stopped { at_us } => {
                stopped_us = at_us;
                runs.extend(open.take().map(|run| Run {
                    until_us: at_us,
                    ..run
                }));
            }
            Said::Status {
                asked_us,
                answered_us,
                runs: true,
            } => match &mut open {
                Some(run) => run.until_us = run.until_us.max(asked_us),
                // It was let run before anybody listened.
                None if asked_us > stopped_us => {
                    open = Some(Run {
                        host: host.to_owned(),
                        from_us: answered_us,
                        until_us: answered_us,
                    });
                }
                None => {}
            },
            Said::Status { runs: false, .. } => {}
            Said::Closed { .. } => runs.extend(open.take()),
        }
    }
    runs.extend(open);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(host: &str, said: Said) -> Sighting {
        Sighting {
            host: host.to_owned(),
            said,
        }
    }

    fn status(host: &str, asked_us: i64, runs: bool) -> Sighting {
        let answered_us = asked_us + 2;
        seen(
            host,
            Said::Status {
                asked_us,
                answered_us,
                runs,
            },
        )
    }

    fn resumed(host: &str, at_us: i64) -> Sighting {
        seen(host, Said::Resumed { at_us })
    }

    fn stopped(host: &str, at_us: i64) -> Sighting {
        seen(host, Said::Stopped { at_us })
    }

    /// It ran at a, was stopped at 100 and let run at b at 150.
    fn good() -> Vec<Sighting> {
        vec![
            status("a", 10, true),
            status("b", 20, false),
            status("a", 30, true),
            stopped("a", 100),
            status("a", 110, false),
            status("b", 120, false),
            resumed("b", 150),
            status("a", 160, false),
            status("b", 170, true),
            status("a", 180, false),
            seen("a", Said::Closed { at_us: 200 }),
        ]
    }

    #[test]
    fn a_good_move_has_two_runs_one_after_the_other() {
        let running = judge_runs(&good());
        assert_eq!(running.overlaps, Vec::<String>::new());
        assert!(running.ran_at("a") && running.ran_at("b") && !running.ran_at("c"));
        assert_eq!(running.between("a", "b"), Some(50));
        assert_eq!(running.answers, 8);
        assert!(running.brackets >= 3, "{running:?}");
    }

    #[test]
    fn a_source_that_is_let_run_again_beside_the_destination_is_found() {
        let mut seen = good();
        seen.insert(10, resumed("a", 185));
        seen.insert(11, status("b", 190, true));
        seen.insert(12, stopped("a", 195));
        let running = judge_runs(&seen);
        assert_eq!(running.overlaps.len(), 1, "{running:?}");
    }

    #[test]
    fn a_bracket_proves_two_without_any_event() {
        let both = [
            status("a", 10, true),
            status("b", 20, true),
            status("a", 30, true),
        ];
        let running = judge_runs(&both);
        assert!(
            running.overlaps.iter().any(|proof| proof.starts_with("between")),
            "{running:?}"
        );
    }

    #[test]
    fn two_samples_at_different_instants_prove_nothing() {
        let one_after_the_other = [
            status("a", 10, true),
            stopped("a", 15),
            resumed("b", 18),
            status("b", 20, true),
        ];
        assert_eq!(judge_runs(&one_after_the_other).overlaps, Vec::<String>::new());
        // It was stopped and let run again in between.
        let to_and_fro = [
            status("a", 10, true),
            stopped("a", 15),
            resumed("b", 18),
            status("b", 20, true),
            stopped("b", 24),
            resumed("a", 28),
            status("a", 30, true),
        ];
        assert_eq!(judge_runs(&to_and_fro).overlaps, Vec::<String>::new());
    }

    #[test]
    fn one_that_has_died_ran_only_as_long_as_that_is_certain() {
        let died = [
            status("a", 10, true),
            status("b", 20, false),
            status("a", 30, true),
            resumed("b", 40),
            status("b", 45, true),
            // Noticed late.
            seen("a", Said::Closed { at_us: 60 }),
        ];
        let running = judge_runs(&died);
        assert_eq!(running.overlaps, Vec::<String>::new());
        assert_eq!(running.between("a", "b"), Some(10));
    }

    #[test]
    fn an_answer_that_was_on_its_way_when_it_stopped_begins_no_run() {
        let late = [
            resumed("a", 5),
            stopped("a", 11),
            seen(
                "a",
                Said::Status {
                    asked_us: 10,
                    answered_us: 14,
                    runs: true,
                },
            ),
        ];
        assert_eq!(judge_runs(&late).runs.len(), 1);
    }
}
