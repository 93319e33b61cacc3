//! The daemon's side of the socket.

use std::{
    io,
    path::{Path, PathBuf},
};

use podnet_common::layout::Event;
use tokio::{
    net::UnixListener,
    runtime::{Builder, Runtime},
    sync::{broadcast, mpsc},
    task::AbortHandle,
};
use tracing::{debug, warn};

use super::{
    bind::{self, Identity},
    question::{self, Question},
    serve::{self, Source},
};

/// Number of dropped packets queued for followers. A follower that falls further behind gets the number of those that
/// it has missed.
const DROPS: usize = 1024;

/// Answers the requests of commands, on a thread of its own.
#[derive(Debug)]
pub struct Server {
    /// Taken on drop.
    runtime: Option<Runtime>,
    run_dir: PathBuf,
    source: Source,
    questions: mpsc::Receiver<Question>,
    /// `None` before the first attempt.
    listening: Option<Result<Listening, String>>,
}

#[derive(Debug)]
struct Listening {
    socket: Identity,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Doesn't wait for tasks, since an asynchronous caller must not block.
            runtime.shutdown_background();
        }
    }
}

impl Server {
    /// Starts the server. If the socket can't be created, this is no error: [`Self::problem`] reports it, and
    /// [`Self::keep`] tries again.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(run_dir: &Path) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("socket").enable_all().build()?;
        let (asker, questions) = question::channel();
        let source = Source::new(asker, broadcast::Sender::new(DROPS));
        let runtime = Some(runtime);
        let mut server = Self { runtime, run_dir: run_dir.to_owned(), source, questions, listening: None };
        server.keep();
        Ok(server)
    }

    /// Creates the socket again if it is missing or has been replaced, or if creating it has failed before.
    pub fn keep(&mut self) {
        let path = bind::path(&self.run_dir);
        if let Some(Ok(listening)) = &self.listening {
            if Identity::at(&path) == Some(listening.socket) {
                return;
            }
            listening.task.abort();
        }
        let listening = self.listen();
        match (&listening, &self.listening) {
            (Ok(_), _) => debug!(socket = %path.display(), "commands are answered"),
            (Err(error), Some(Err(before))) if error == before => {}
            (Err(error), _) => warn!("commands are not answered: {error}"),
        }
        self.listening = Some(listening);
    }

    fn listen(&self) -> Result<Listening, String> {
        let Some(runtime) = &self.runtime else { return Err("the server has ended".to_owned()) };
        let (listener, socket) = bind::listen_in(&self.run_dir).map_err(|error| error.to_string())?;
        let _entered = runtime.enter();
        let listener = UnixListener::from_std(listener).map_err(|error| error.to_string())?;
        let task = runtime.spawn(serve::serve(listener, self.source.clone())).abort_handle();
        Ok(Listening { socket, task })
    }

    /// Why commands are not answered, as a text for users.
    pub fn problem(&self) -> Option<String> {
        let error = self.listening.as_ref()?.as_ref().err()?;
        Some(format!("commands cannot ask the daemon, and show the tables and its last report instead: {error}"))
    }

    /// Waits for the next question.
    pub async fn question(&mut self) -> Question {
        match self.questions.recv().await {
            Some(question) => question,
            // Unreachable: `source` keeps a sender.
            None => std::future::pending().await,
        }
    }

    /// The channel by which dropped packets reach all followers.
    pub fn drops(&self) -> broadcast::Sender<Event> {
        self.source.drops.clone()
    }
}

#[cfg(test)]
mod tests;
