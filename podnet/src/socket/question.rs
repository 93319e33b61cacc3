//! What the server asks the event loop. The loop answers with copies or shared pointers; whatever takes time, such as
//! explaining a Service with many endpoints or writing JSON, happens on the server's thread.

use tokio::sync::{mpsc, oneshot};

use super::protocol::{ExternalAddresses, Pending};
use crate::{model::ObjectName, select::Inputs, status::DaemonStatus};

/// How many questions are queued for the event loop; further clients wait.
const QUEUE: usize = 16;

/// A question with the channel for its answer. The client may have disconnected meanwhile.
#[derive(Debug)]
pub enum Question {
    /// How the daemon stands.
    Status(oneshot::Sender<DaemonStatus>),
    /// What is not in effect yet.
    Pending(oneshot::Sender<Pending>),
    /// What a Service comes to.
    Explain(ObjectName, oneshot::Sender<Explainable>),
    /// External addresses of the Services after one, or of the first.
    Addresses(Option<ObjectName>, oneshot::Sender<AddressPage>),
}

/// All that it takes to explain a Service.
#[derive(Clone, Debug, Default)]
pub struct Explainable {
    /// None if there is no such Service.
    pub service: Option<Inputs>,
    /// Files and objects that are invalid.
    pub invalid: Vec<String>,
}

/// External addresses of some Services: as many as can be looked through without delaying the event loop.
#[derive(Clone, Debug, Default)]
pub struct AddressPage {
    /// Of the Services that have some.
    pub services: Vec<ExternalAddresses>,
    /// The last Service that was looked at, if there may be more after it.
    pub last: Option<ObjectName>,
}

/// The way to the event loop, one for each client.
#[derive(Clone, Debug)]
pub(super) struct Asker(mpsc::Sender<Question>);

/// The event loop has ended.
#[derive(Debug)]
pub(super) struct Gone;

/// A way to an event loop, and its end there.
pub(super) fn channel() -> (Asker, mpsc::Receiver<Question>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Asker(sender), receiver)
}

impl Asker {
    /// Asks, and waits for the answer.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0.send(question(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}
