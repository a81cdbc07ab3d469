//! What there is: the bucket, the window, and what may still come back of the last grants.

use super::bytes::{Reader, Writer};
use crate::supply::bucket::Bucket;
use crate::supply::reservation::{RECENT_MAX, Recent, RecentGrants, Ticket};
use crate::supply::window::{KEPT, WindowGuard};

impl Writer {
    pub(super) fn bucket(&mut self, bucket: &Bucket) {
        let (level, updated_at, ready_since) = bucket.parts();
        self.number(level);
        self.instant(updated_at);
        self.instant(ready_since);
    }

    pub(super) fn window(&mut self, guard: &WindowGuard) {
        let (window, newest, counts) = guard.parts();
        self.number(window.get());
        self.number(newest);
        self.sparse(counts.iter().map(|count| [*count]));
    }

    pub(super) fn recent(&mut self, recent: &RecentGrants) {
        let (grants, next) = recent.parts();
        self.number(next);
        for grant in grants {
            self.number(next.wrapping_sub(grant.ticket.0));
            self.number(grant.peak);
        }
    }
}

impl Reader<'_> {
    pub(super) fn bucket(&mut self) -> Option<Bucket> {
        let bucket = Bucket::from_parts(self.number()?, self.instant()?, self.instant()?);
        self.end()?;
        Some(bucket)
    }

    pub(super) fn window(&mut self) -> Option<WindowGuard> {
        let (window, newest) = (self.span()?, self.number()?);
        let mut counts = [0; KEPT];
        self.sparse(&mut counts, |count, [value]: [u32; 1]| *count = value)?;
        self.end()?;
        Some(WindowGuard::from_parts(window, newest, counts))
    }

    pub(super) fn recent(&mut self) -> Option<RecentGrants> {
        let next = self.number()?;
        let mut grants = Vec::new();
        while !self.bytes.is_empty() {
            if grants.len() >= RECENT_MAX {
                return None;
            }
            grants.push(Recent { ticket: Ticket(next.wrapping_sub(self.number()?)), peak: self.number()? });
        }
        Some(RecentGrants::from_parts(grants, next))
    }
}
