//! Questions of the server to the event loop. The loop answers with copies or shared pointers; whatever takes time,
//! such as explaining a Service with many endpoints or writing JSON, happens on the server's thread.

use tokio::sync::{mpsc, oneshot};

use super::{
    policies::{DenyingRule, PodFacts, PolicyFacts, PolicySummary},
    protocol::{ExternalAddresses, Pending},
};
use crate::{model::ObjectName, policy::Denial, select::Inputs, status::DaemonStatus};

/// Number of questions queued for the event loop; further clients wait.
const QUEUE: usize = 16;

/// A question with the channel for its answer. The client may have disconnected meanwhile.
#[derive(Debug)]
pub enum Question {
    /// The daemon's status.
    Status(oneshot::Sender<DaemonStatus>),
    /// Frontends that are not in effect yet.
    Pending(oneshot::Sender<Pending>),
    /// Explanation of a Service.
    Explain(ObjectName, oneshot::Sender<Explainable>),
    /// External addresses of the Services after this one, or of the first ones.
    Addresses(Option<ObjectName>, oneshot::Sender<AddressPage>),
    /// The NetworkPolicies after this one, or the first ones.
    Policies(Option<ObjectName>, oneshot::Sender<Result<PolicyPage, Unsynced>>),
    /// A NetworkPolicy; `None` if there is no such policy.
    Policy(ObjectName, oneshot::Sender<Result<Option<PolicyFacts>, Unsynced>>),
    /// The policies of a pod.
    PodPolicies(ObjectName, oneshot::Sender<Result<PodFacts, Unsynced>>),
    /// The policies that deny by the rule sets.
    Denials(oneshot::Sender<Vec<DenyingRule>>),
    /// The policies that have denied a packet.
    Denying(Denial, oneshot::Sender<Vec<ObjectName>>),
}

/// The daemon hasn't read all objects yet, so that the absence of one means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsynced;

/// Some NetworkPolicies: as many as can be examined without delaying the event loop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyPage {
    /// The policies.
    pub policies: Vec<PolicySummary>,
    /// The last one examined, if more may follow.
    pub last: Option<ObjectName>,
}

/// Everything needed to explain a Service.
#[derive(Clone, Debug, Default)]
pub struct Explainable {
    /// `None` if there is no such Service.
    pub service: Option<Inputs>,
    /// Files and objects that are invalid.
    pub invalid: Vec<String>,
}

/// External addresses of some Services: as many as can be examined without delaying the event loop.
#[derive(Clone, Debug, Default)]
pub struct AddressPage {
    /// Those of Services that have any.
    pub services: Vec<ExternalAddresses>,
    /// The last Service examined, if more may follow.
    pub last: Option<ObjectName>,
}

/// A handle for asking the event loop, one for each client.
#[derive(Clone, Debug)]
pub(super) struct Asker(mpsc::Sender<Question>);

/// The event loop has ended.
#[derive(Debug)]
pub(super) struct Gone;

/// Creates a handle, and the receiver of the event loop.
pub(super) fn channel() -> (Asker, mpsc::Receiver<Question>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Asker(sender), receiver)
}

impl Asker {
    /// Asks a question and waits for the answer.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0.send(question(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}
