//! The body of an answer on its way out: pieces with a gap between them, and at the end either a proper end or a cut
//! connection. It carries the request's ticket, so that the record knows whether the answer became complete.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::connection::{Cut, Line};
use crate::record::Ticket;

pub struct Answer {
    pieces: VecDeque<Bytes>,
    gap: Duration,
    pause: Option<Pin<Box<Sleep>>>,
    /// The connection to cut after the last piece, where that was asked for.
    cut: Option<Arc<Line>>,
    /// A stream's length is not known beforehand.
    stream: bool,
    /// `None` for answers of the control API, which are not on record.
    ticket: Option<Ticket>,
}

impl Answer {
    /// A body known as a whole.
    pub fn whole(body: Bytes, ticket: Option<Ticket>) -> Self {
        let pieces = if body.is_empty() { VecDeque::new() } else { VecDeque::from([body]) };
        let mut answer = Self { pieces, gap: Duration::ZERO, pause: None, cut: None, stream: false, ticket };
        answer.settle();
        answer
    }

    /// A body that comes in pieces.
    pub fn stream(pieces: Vec<Bytes>, gap: Duration, ticket: Ticket) -> Self {
        Self { pieces: pieces.into(), gap, stream: true, ..Self::whole(Bytes::new(), None).with(ticket) }
    }

    /// The first piece, and one gap later the connection is closed: the gap lets the piece leave before.
    pub fn broken_off(first: Bytes, gap: Duration, line: Arc<Line>, ticket: Ticket) -> Self {
        Self { cut: Some(line), ..Self::stream(vec![first], gap, ticket) }
    }

    fn with(mut self, ticket: Ticket) -> Self {
        self.ticket = Some(ticket);
        self
    }

    /// hyper may drop a body without asking it again once nothing is left in it, so the record is settled as the last
    /// piece leaves and not at the end that follows it.
    fn settle(&mut self) {
        if self.pieces.is_empty()
            && self.cut.is_none()
            && let Some(ticket) = &mut self.ticket
        {
            ticket.finish();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let Some(piece) = self.pieces.pop_front() else {
            let Some(line) = self.cut.clone() else {
                return Poll::Ready(None);
            };
            if let Some(ticket) = &mut self.ticket {
                ticket.cut();
            }
            line.cut(Cut::Close);
            // The connection's task drops us, and the connection with us.
            return Poll::Pending;
        };
        if !self.gap.is_zero() && (self.cut.is_some() || !self.pieces.is_empty()) {
            self.pause = Some(Box::pin(sleep(self.gap)));
        }
        self.settle();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.cut.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.stream {
            return SizeHint::default();
        }
        SizeHint::with_exact(self.pieces.iter().map(|piece| piece.len() as u64).sum())
    }
}
