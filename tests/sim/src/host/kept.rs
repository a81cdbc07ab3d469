//! What Envoy keeps of a request's body while a filter holds it: with the bug envoy#46841, as Envoys before its fix have it.

/// How far a request's body is on its way through the filter.
#[derive(Clone, Copy, Default, Debug)]
pub struct Kept {
    /// Whether the filter chain is stopped at the filter.
    stopped: bool,
    /// Whether the filter paused the last piece. The next one is put with what is kept.
    paused: bool,
    /// Bytes that are kept.
    bytes: usize,
    /// Bytes that went on.
    pub gone: usize,
}

impl Kept {
    /// The filter paused the headers.
    pub fn hold_headers(&mut self) {
        self.stopped = true;
    }

    /// The filter answered a callback with a piece of the body, or with its trailers, by pausing or not.
    pub fn piece(&mut self, size: usize, pauses: bool) {
        if self.paused || pauses || self.stopped {
            self.bytes += size;
        } else {
            self.gone += size;
        }
        self.paused = pauses;
        if pauses {
            self.stopped = true;
        } else if self.stopped {
            self.flush();
        }
        // What was put with the kept bytes and let pass while nothing was stopped stays there: that is the bug.
    }

    /// The filter resumed the request. Answers whether that was allowed: what is not stopped must not be.
    pub fn resume(&mut self) -> bool {
        let allowed = self.stopped;
        self.flush();
        allowed
    }

    fn flush(&mut self) {
        self.stopped = false;
        self.gone += self.bytes;
        self.bytes = 0;
    }

    /// Whether all that came has gone on, once nothing more comes and nothing is stopped.
    pub fn has_lost(&self, came: usize) -> bool {
        !self.stopped && self.gone < came
    }
}
