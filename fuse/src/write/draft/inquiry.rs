//! What is there under the name of a file that is created anew over whatever is there: asked for
//! when it is opened, while its writer goes on.
//!
//! The answer is what the open saw. It is waited for only where a store is refused.

use tokio::sync::watch;

use super::Draft;
use crate::origin::Condition;

/// What became of the question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Inquiry {
    /// It was not asked, or its answer is known already.
    #[default]
    Over,
    /// It was asked.
    Asked,
    /// What was there.
    Answered(Condition),
}

/// Whoever asks the origin; dropped without an answer, there is none.
pub(in crate::write) struct Asker<'a> {
    draft: &'a Draft,
    answer: Inquiry,
}

impl Asker<'_> {
    /// Notes what is there.
    pub(in crate::write) fn answer(mut self, present: Condition) {
        self.answer = Inquiry::Answered(present);
    }
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        let answer = std::mem::take(&mut self.answer);
        self.draft.inquiry.send_if_modified(|inquiry| {
            let waits = *inquiry == Inquiry::Asked;
            if waits {
                *inquiry = answer;
            }
            waits
        });
    }
}

impl Draft {
    /// Notes that the origin is about to be asked.
    pub(in crate::write) fn inquire(&self) {
        self.inquiry.send_replace(Inquiry::Asked);
    }

    pub(in crate::write) fn asker(&self) -> Asker<'_> {
        Asker { draft: self, answer: Inquiry::Over }
    }

    /// Takes an answer that is there already for what the open saw.
    pub(super) fn note_answer(&self) {
        let mut present = None;
        self.inquiry.send_if_modified(|inquiry| {
            if let Inquiry::Answered(answer) = inquiry {
                present = Some(answer.clone());
                *inquiry = Inquiry::Over;
            }
            present.is_some()
        });
        if let Some(present) = present {
            self.state().seen = present;
        }
    }

    /// No answer matters any more: this draft itself is what is there.
    pub(super) fn end_inquiry(&self) {
        self.inquiry.send_replace(Inquiry::Over);
    }

    /// After a refusal: waits for the answer. Says whether the open saw something else than what
    /// was taken for granted.
    pub(in crate::write) async fn learns_seen(&self) -> bool {
        let before = self.seen();
        let mut inquiry: watch::Receiver<_> = self.inquiry.subscribe();
        // The sender is this draft's.
        let _ = inquiry.wait_for(|inquiry| *inquiry != Inquiry::Asked).await;
        self.note_answer();
        self.seen() != before
    }
}
