//! Clients of the socket. There are limits for their number ([`CLIENTS`]), for the length of a request, and for the
//! time between requests.

use std::{
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use podnet_common::layout::Event;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{
        Semaphore,
        broadcast::{self, error::RecvError},
    },
    time::{sleep, timeout},
};

use super::{
    dropped::Dropped,
    policies::PolicyFacts,
    protocol::{Answer, Explanation, ExternalAddresses, REQUEST_MAX, Request, Stream, Subject},
    question::{Asker, Gone, PolicyPage, Question, Unsynced},
};
use crate::{limit::Limit, model::ObjectName};

/// Maximum number of clients; further ones get an error.
const CLIENTS: usize = 32;
/// Time limit for a client to send a request.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// Time limit for a client to read an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Time limit for a follower to read an answer: its output may be in a pager.
const FOLLOWER_PATIENCE: Duration = Duration::from_secs(600);
/// Maximum number of dropped packets per second for which a follower learns the policies: each is a question to the
/// event loop.
const NAMED: u32 = 100;
/// Interval for retrying `accept`, which fails when the process is out of file descriptors.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// What clients share: access to the event loop, the stream of dropped packets, and the limit for their number.
#[derive(Clone, Debug)]
pub(super) struct Source {
    asker: Asker,
    pub(super) drops: broadcast::Sender<Event>,
    places: Arc<Semaphore>,
}

impl Source {
    pub(super) fn new(asker: Asker, drops: broadcast::Sender<Event>) -> Self {
        Self { asker, drops, places: Arc::new(Semaphore::new(CLIENTS)) }
    }
}

/// The connection is to be closed.
struct Over;

impl From<io::Error> for Over {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl From<Gone> for Over {
    fn from(_: Gone) -> Self {
        Self
    }
}

/// Accepts clients until the task is aborted. Existing connections are not affected.
pub(super) async fn serve(listener: UnixListener, source: Source) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(RETRY_INTERVAL).await;
            continue;
        };
        match source.places.clone().try_acquire_owned() {
            Ok(place) => {
                let source = source.clone();
                tokio::spawn(async move {
                    // Whatever the outcome, only this connection ends.
                    let _: Result<(), Over> = converse(stream, &source).await;
                    drop(place);
                });
            }
            Err(_) => {
                let full = Answer::Error(format!("too many connections ({CLIENTS} at most): close some and try again"));
                // The buffer of a new socket has room for a line.
                let _ = stream.try_write(&line(&full));
            }
        }
    }
}

async fn converse(stream: UnixStream, source: &Source) -> Result<(), Over> {
    let (requests, mut answers) = stream.into_split();
    let mut requests = BufReader::new(requests);
    loop {
        let request = within(REQUEST_PATIENCE, next_request(&mut requests)).await?;
        match request {
            Ok(Request::Follow(Stream::Drops)) => return follow_drops(requests, &mut answers, source).await,
            Ok(request) => send(&mut answers, &answer(request, &source.asker).await?, ANSWER_PATIENCE).await?,
            Err(Refused { why, over }) => {
                send(&mut answers, &Answer::Error(why), ANSWER_PATIENCE).await?;
                if over {
                    return Err(Over);
                }
            }
        }
    }
}

/// A line that is not a valid request.
struct Refused {
    why: String,
    /// Whether the connection must be closed, because the start of the next line is unknown.
    over: bool,
}

/// Reads the client's next request. [`Over`] if the client has closed its side.
async fn next_request(requests: &mut BufReader<OwnedReadHalf>) -> Result<Result<Request, Refused>, Over> {
    let mut line = Vec::new();
    requests.take(REQUEST_MAX as u64 + 1).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(Over);
    }
    if line.last() != Some(&b'\n') && line.len() > REQUEST_MAX {
        let why = format!("the request has more than {REQUEST_MAX} bytes");
        return Ok(Err(Refused { why, over: true }));
    }
    Ok(serde_json::from_slice(&line).map_err(|error| Refused { why: format!("not a request: {error}"), over: false }))
}

async fn answer(request: Request, asker: &Asker) -> Result<Answer, Over> {
    Ok(match request {
        Request::Get(Subject::Status) => Answer::Status(Box::new(asker.ask(Question::Status).await?)),
        Request::Get(Subject::Addresses) => Answer::Addresses(addresses(asker).await?),
        Request::Pending {} => Answer::Pending(asker.ask(Question::Pending).await?),
        Request::Explain { namespace, name } => {
            let name = ObjectName { namespace, name };
            let found = asker.ask(|reply| Question::Explain(name, reply)).await?;
            let service = found.service.map(|inputs| inputs.explain());
            Answer::Explanation(Explanation { service, invalid: found.invalid })
        }
        Request::Get(Subject::Policies) => policies(asker).await?,
        Request::Get(Subject::Denials) => Answer::Denials(asker.ask(Question::Denials).await?),
        Request::Policy { namespace, name } => {
            let name = ObjectName { namespace, name };
            let found = asker.ask(|reply| Question::Policy(name, reply)).await?;
            let answer = |found: Option<PolicyFacts>| Answer::Policy(found.map(|facts| Box::new(facts.detail())));
            found.map_or_else(unsynced, answer)
        }
        Request::PodPolicies { namespace, name } => {
            let pod = ObjectName { namespace, name };
            let found = asker.ask(|reply| Question::PodPolicies(pod, reply)).await?;
            found.map_or_else(unsynced, |facts| Answer::PodPolicies(Box::new(facts.answer())))
        }
        Request::Follow(stream) => Answer::Following(stream),
    })
}

fn unsynced(_: Unsynced) -> Answer {
    Answer::Error("not all objects have been read yet: try again, and see `podnet status`".to_owned())
}

/// All network policies, page by page.
async fn policies(asker: &Asker) -> Result<Answer, Over> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let PolicyPage { policies, last } = match asker.ask(|reply| Question::Policies(after, reply)).await? {
            Ok(page) => page,
            Err(error) => return Ok(unsynced(error)),
        };
        all.extend(policies);
        match last {
            Some(last) => after = Some(last),
            None => return Ok(Answer::Policies(all)),
        }
    }
}

/// External addresses of all Services, page by page.
async fn addresses(asker: &Asker) -> Result<Vec<ExternalAddresses>, Over> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = asker.ask(|reply| Question::Addresses(after, reply)).await?;
        all.extend(page.services);
        match page.last {
            Some(last) => after = Some(last),
            None => return Ok(all),
        }
    }
}

/// Passes on dropped packets until the client closes the connection or sends something.
async fn follow_drops(
    mut requests: BufReader<OwnedReadHalf>,
    answers: &mut OwnedWriteHalf,
    source: &Source,
) -> Result<(), Over> {
    let mut drops = source.drops.subscribe();
    let mut names = Limit::new(NAMED, Instant::now());
    send(answers, &Answer::Following(Stream::Drops), ANSWER_PATIENCE).await?;
    loop {
        let next = tokio::select! {
            next = drops.recv() => next,
            _ = requests.fill_buf() => return Err(Over),
        };
        let answer = match next {
            Ok(event) => {
                let dropped = Dropped::of(&event);
                let is_named = dropped.denials().next().is_some() && names.admit(Instant::now()).is_some();
                Answer::Drop(if is_named { named(dropped, &source.asker).await? } else { dropped })
            }
            Err(RecvError::Lagged(lost)) => Answer::Lost(lost),
            Err(RecvError::Closed) => return Err(Over),
        };
        send(answers, &answer, FOLLOWER_PATIENCE).await?;
    }
}

/// Adds the policies that have denied a packet.
async fn named(dropped: Dropped, asker: &Asker) -> Result<Dropped, Over> {
    for denial in dropped.denials().collect::<Vec<_>>() {
        let denying = asker.ask(|reply| Question::Denying(denial, reply)).await?;
        if !denying.is_empty() {
            return Ok(Dropped { policies: denying.iter().map(ObjectName::to_string).collect(), ..dropped });
        }
    }
    Ok(dropped)
}

async fn send(answers: &mut OwnedWriteHalf, answer: &Answer, patience: Duration) -> Result<(), Over> {
    let line = line(answer);
    within(patience, async { Ok(answers.write_all(&line).await?) }).await
}

fn line(answer: &Answer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_else(|error| {
        // Possible only for maps with keys that are not strings; answers have none.
        tracing::error!("cannot encode an answer: {error}");
        br#"{"error":"the answer cannot be encoded"}"#.to_vec()
    });
    line.push(b'\n');
    line
}

/// Runs a step of a connection with a time limit.
async fn within<T>(patience: Duration, step: impl Future<Output = Result<T, Over>>) -> Result<T, Over> {
    timeout(patience, step).await.unwrap_or(Err(Over))
}
