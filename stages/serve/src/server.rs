//! Listening: connections with bounds, and a stop that lets answers end.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use flow_lm::Model;
use flow_lm::infer::{CHUNK, Session, Takes, Uses};
use flow_shaders::device::Device;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;

use crate::ask::Bounds;
use crate::doors::Doors;
use crate::id::now;
use crate::queue::Queue;
use crate::routes;
use crate::shared::Shared;
use crate::stats::Stats;
use crate::worker;

/// Connections that are open at a time.
const CONNECTIONS: usize = 512;

/// Threads for what takes long: tokens of long texts, grammars.
const BLOCKING: usize = 4;

/// Time in which a client that reads must take something.
const WRITE_TIME: Duration = Duration::from_secs(60);

/// Time for the last words after the grace of a stop.
const LAST: Duration = Duration::from_secs(1);

/// Bytes of a request's head, and the time that it may take.
const HEAD: (usize, Duration) = (32 << 10, Duration::from_secs(10));

/// How a model is served.
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// How clients call the model.
    pub name: String,
    /// Sequences at a time.
    pub slots: usize,
    /// Tokens that a prompt and its answer may have together.
    pub context: usize,
    /// Requests that wait for a slot, at most.
    pub waiting: usize,
    /// What linears take, which must fit the model.
    pub takes: Takes,
    /// How keys and values are held.
    pub cache: flow_lm::infer::KvCache,
    /// What every request must bring.
    pub key: Option<String>,
    /// Tokens of given text that are scored at a time, in memory of its own; none: none are.
    pub score: Option<usize>,
    /// Time that running answers have after a stop.
    pub grace: Duration,
}

/// A model that is ready to be served.
pub struct Server {
    listener: TcpListener,
    session: Session,
    shared: Arc<Shared>,
    options: Options,
    /// Ends the answers that still run.
    end: watch::Sender<bool>,
}

/// What is allocated, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Slots, and the tokens of each.
    pub slots: (usize, usize),
    /// Keys and values of all slots.
    pub cache: u64,
    /// All: weights, cache, activations.
    pub all: u64,
}

/// It could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The model on the device.
    #[error(transparent)]
    Model(#[from] flow_lm::Error),
    /// Threads or timers.
    #[error("cannot begin to serve: {0}")]
    Runtime(std::io::Error),
}

impl Server {
    /// Plans and allocates everything, and listens.
    pub fn new(device: &Device, model: Model, options: Options) -> Result<Self, ServeError> {
        let listener = TcpListener::bind(options.address).map_err(|e| ServeError::Listen(options.address, e))?;
        let context = options.context.next_multiple_of(CHUNK);
        let (config, bounds) = (&model.checkpoint.config, Bounds::default());
        let mut uses =
            Uses { decode: Some((options.slots, context)), draws: true, prefill: CHUNK, cache: options.cache.form(), ..Uses::default() };
        if let Some(window) = options.score {
            // One window at a time; how many are scored together changes no result.
            let top_k = bounds.candidates.min(config.vocab);
            uses = Uses { score: Some((1, window.min(config.seq))), top_k, taus: vec![1.0; bounds.taus], ..uses };
        }
        let uses = uses.taking(options.takes);
        let mut session = Session::new(device, model.checkpoint.config.clone(), &model.checkpoint.tensors, uses)?;
        session.set_bits(options.takes.bits())?;
        let (end, ending) = watch::channel(false);
        let shared = Shared {
            name: options.name.clone(),
            created: now(),
            queue: Arc::new(Queue::new(options.waiting)),
            stats: Arc::new(Stats::default()),
            slots: session.slots(),
            window: session.windows().map(|w| w.1),
            bounds,
            compiled: Arc::default(),
            turns: Arc::new(Semaphore::new(BLOCKING)),
            ending,
            model: Arc::new(model),
        };
        Ok(Self { listener, session, shared: Arc::new(shared), options, end })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.options.address)
    }

    /// What is allocated.
    pub fn memory(&self) -> Memory {
        Memory { slots: self.session.slots(), cache: self.session.cache_bytes(), all: self.session.bytes() }
    }

    /// Serves until `stop` is done; then no request is taken, and those that run have their grace.
    pub fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { listener, mut session, shared, options, end } = self;
        let (queue, stats) = (shared.queue.clone(), shared.stats.clone());
        let worker = std::thread::Builder::new().name("model".into()).spawn(move || worker::work(&mut session, &queue, &stats));
        let worker = worker.map_err(ServeError::Runtime)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(BLOCKING)
            .enable_all()
            .build()
            .map_err(ServeError::Runtime)?;
        runtime.block_on(listen(listener, &shared, (&options, &end), stop)).map_err(ServeError::Runtime)?;
        // Connections that are open still end here: nothing of the requests is left that the worker would answer.
        runtime.shutdown_timeout(LAST);
        shared.queue.close();
        // Answers of clients that are gone end at the next step; a panic there has been told to whom it concerned.
        let _ = worker.join();
        Ok(())
    }
}

async fn listen(
    listener: TcpListener,
    shared: &Arc<Shared>,
    (options, end): (&Options, &watch::Sender<bool>),
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let loopback = listener.local_addr()?.ip().is_loopback();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let doors = Doors { loopback, key: options.key.as_ref().map(|k| blake3::hash(k.as_bytes())) };
    let service = TowerToHyperService::new(routes::router(shared, doors));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD.1).max_buf_size(HEAD.0).max_headers(64);
    let (graceful, room) = (GracefulShutdown::new(), Arc::new(Semaphore::new(CONNECTIONS)));
    tokio::pin!(stop);
    loop {
        let permit = room.clone().acquire_owned();
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = async { (permit.await, listener.accept().await) } => accepted,
        };
        let (Ok(permit), accepted) = accepted else { break };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, or a client that is gone already: not a reason to stop.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // Tokens go out as they come.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIME));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(Box::pin(stream)), service.clone()));
        tokio::spawn(async move {
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    let ended = graceful.shutdown();
    tokio::pin!(ended);
    if tokio::time::timeout(options.grace, &mut ended).await.is_err() {
        // What still runs ends with an error that says so.
        let _ = end.send(true);
        let _ = tokio::time::timeout(LAST, ended).await;
    }
    Ok(())
}
