//! What is known of refusals that no rate causes, and of what was let in.

use super::bytes::{Reader, Writer};
use crate::control::history::{History, KEPT, Part};
use crate::control::strays::{LOW_EVIDENCE_LEAST, Strays};
use crate::units::MilliRpm;

impl Writer {
    pub(super) fn strays(&mut self, strays: &Strays) {
        let Strays { history, .. } = strays;
        self.number(history.window.get());
        self.number(history.newest);
        self.sparse(history.parts.iter().map(|part| [part.granted, part.refused, part.elsewhere].map(u32::from)));
        let evidence = strays.low_evidence.saturating_sub(LOW_EVIDENCE_LEAST);
        for number in [
            strays.share,
            strays.credit,
            strays.test_share,
            strays.test_rate.get(),
            strays.gap_without,
            strays.gap_with,
            strays.best,
            strays.before.get(),
            strays.row,
            strays.ignored,
            strays.shut_rate.get(),
            u32::try_from(evidence).unwrap_or(0),
            strays.low_answers,
            strays.low_refused,
        ] {
            self.number(u64::from(number));
        }
        for at in [
            strays.test_from,
            strays.test_at,
            strays.best_from,
            strays.young_from,
            strays.before_at,
            strays.paused_until,
            strays.left_at,
            strays.ignored_since,
            strays.shut_at,
            strays.shut_seen_at,
            strays.fell_at,
            strays.limit_until,
            strays.tried_at,
        ] {
            self.instant(at);
        }
        for span in [strays.late, strays.refusal_takes, strays.answer_takes] {
            self.number(span.get());
        }
    }
}

impl Reader<'_> {
    pub(super) fn strays(&mut self) -> Option<Strays> {
        let (window, newest) = (self.span()?, self.number()?);
        let mut parts = [Part::default(); KEPT];
        let mut fits = true;
        self.sparse(&mut parts, |part, counts: [u32; 3]| {
            let [granted, refused, elsewhere] = counts.map(u16::try_from);
            match (granted, refused, elsewhere) {
                (Ok(granted), Ok(refused), Ok(elsewhere)) => *part = Part { granted, refused, elsewhere },
                _ => fits = false,
            }
        })?;
        if !fits {
            return None;
        }
        Some(Strays {
            history: History { window, newest, parts },
            share: self.number_u32().filter(|share| *share <= 1_000_000)?,
            credit: self.number_u32()?,
            test_share: self.number_u32().filter(|share| *share <= 1_000_000)?,
            test_rate: MilliRpm::new(self.number_u32()?),
            gap_without: self.number_u32()?,
            gap_with: self.number_u32()?,
            best: self.number_u32()?,
            before: MilliRpm::new(self.number_u32()?),
            row: self.number_u32()?,
            ignored: self.number_u32()?,
            shut_rate: MilliRpm::new(self.number_u32()?),
            low_evidence: i32::try_from(self.number_u32()?).ok()?.checked_add(LOW_EVIDENCE_LEAST)?,
            low_answers: self.number_u32()?,
            low_refused: self.number_u32()?,
            test_from: self.instant()?,
            test_at: self.instant()?,
            best_from: self.instant()?,
            young_from: self.instant()?,
            before_at: self.instant()?,
            paused_until: self.instant()?,
            left_at: self.instant()?,
            ignored_since: self.instant()?,
            shut_at: self.instant()?,
            shut_seen_at: self.instant()?,
            fell_at: self.instant()?,
            limit_until: self.instant()?,
            tried_at: self.instant()?,
            late: self.span()?,
            refusal_takes: self.span()?,
            answer_takes: self.span()?,
        })
    }
}
