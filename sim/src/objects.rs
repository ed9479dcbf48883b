//! An object store as a node of the world: `object_store::ObjectStore` over the simulated network.
//!
//! The store itself never loses an object (that is its provider's promise); what happens to it happens
//! on the way: a request lost, a request applied whose answer is lost, a conditional put raced, a
//! request that arrives after its own retry. Whatever is not a definite answer is
//! `Error::Generic`, and means unknown.

use crate::{
    node::Host,
    trace::{OwnedValue, Value},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{stream::BoxStream, FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use object_store::{
    path::Path, Attributes, CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a client waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// A request or an answer is at most this large.
const FRAME_BYTES_MAX: u32 = 64 << 20;

/// The objects of a store; they outlive the process of the node that serves them.
#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<Objects>>);

#[derive(Default)]
struct Objects {
    by_path: BTreeMap<String, (u64, Bytes)>,
    next_tag: u64,
}

#[derive(Serialize, Deserialize)]
enum Request {
    Put { path: String, when: When },
    Get { path: String, head: bool },
    List { prefix: String },
    Delete { path: String },
}

impl Request {
    /// The path of an object that is to be created, if it is not there yet.
    fn creates(&self) -> Option<String> {
        match self {
            Request::Put {
                path,
                when: When::Absent,
            } => Some(path.clone()),
            _ => None,
        }
    }
}

#[derive(Serialize, Deserialize)]
enum When {
    Always,
    Absent,
    Tagged(u64),
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Done { tag: u64 },
    Found { tag: u64, size: u64 },
    Listed(Vec<(String, u64, u64)>),
    Exists,
    Changed,
    Missing,
}

impl Shelf {
    /// What is on the shelf, without asking anybody: for checkers.
    pub fn paths(&self) -> Vec<String> {
        self.0
            .lock()
            .expect("shelf")
            .by_path
            .keys()
            .cloned()
            .collect()
    }

    fn answer(&self, request: Request, body: Bytes) -> (Answer, Bytes) {
        let mut objects = self.0.lock().expect("shelf");
        let none = Bytes::new();
        match request {
            Request::Put { path, when } => {
                let tag = objects.by_path.get(&path).map(|(tag, _)| *tag);
                match (when, tag) {
                    (When::Absent, Some(_)) => return (Answer::Exists, none),
                    (When::Tagged(want), found) if found != Some(want) => {
                        return (Answer::Changed, none)
                    }
                    _ => {}
                }
                objects.next_tag += 1;
                let tag = objects.next_tag;
                objects.by_path.insert(path, (tag, body));
                (Answer::Done { tag }, none)
            }
            Request::Get { path, head } => match objects.by_path.get(&path) {
                None => (Answer::Missing, none),
                Some((tag, body)) => {
                    let (tag, size) = (*tag, body.len() as u64);
                    let body = if head { none } else { body.clone() };
                    (Answer::Found { tag, size }, body)
                }
            },
            Request::List { prefix } => {
                let under = |path: &&String| {
                    prefix.is_empty()
                        || path
                            .strip_prefix(&prefix)
                            .is_some_and(|rest| rest.starts_with('/'))
                };
                let from = objects.by_path.range(prefix.clone()..);
                let listed = from
                    .take_while(|(path, _)| path.starts_with(&prefix))
                    .filter(|(path, _)| under(path))
                    .map(|(path, (tag, body))| (path.clone(), *tag, body.len() as u64));
                (Answer::Listed(listed.collect()), none)
            }
            Request::Delete { path } => {
                objects.by_path.remove(&path);
                (Answer::Done { tag: 0 }, none)
            }
        }
    }
}

/// Serves a shelf on a port of `host`, for ever.
pub async fn serve(host: Host, port: u16, shelf: Shelf) -> io::Result<()> {
    let listener = host.listen(port)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let (shelf, nodes) = (shelf.clone(), host.nodes.clone());
        madsim::task::spawn_local(async move {
            while let Ok((head, body)) = receive(&mut stream).await {
                let Ok(request) = postcard::from_bytes::<Request>(&head) else {
                    return;
                };
                let created = request.creates();
                let (answer, body) = shelf.answer(request, body);
                if let (Some(path), Answer::Done { .. }) = (created, &answer) {
                    // It is there, and nobody knows yet.
                    let path = [("path", OwnedValue::Text(path))];
                    nodes.engine_event("objects.created", &path);
                }
                if send(&mut stream, &answer, &body).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// A client of a store that another node serves.
#[derive(Clone)]
pub struct ObjectClient(Arc<Client>);

struct Client {
    host: Host,
    address: String,
    idle: Mutex<Vec<crate::net::Stream>>,
}

impl ObjectClient {
    /// Asks the store at `NAME:PORT`, from `host`.
    pub fn new(host: Host, address: &str) -> Self {
        ObjectClient(Arc::new(Client {
            host,
            address: address.to_owned(),
            idle: Mutex::default(),
        }))
    }

    async fn ask(&self, request: Request, body: &[u8]) -> Result<(Answer, Bytes)> {
        let client = &self.0;
        let asked = async {
            let idle = client.idle.lock().expect("idle").pop();
            let mut stream = match idle {
                Some(stream) => stream,
                None => client.host.connect(&client.address).await?,
            };
            send(&mut stream, &request, body).await?;
            let (head, body) = receive(&mut stream).await?;
            let answer = postcard::from_bytes(&head).map_err(io::Error::other)?;
            client.idle.lock().expect("idle").push(stream);
            Ok::<_, io::Error>((answer, body))
        };
        let answered = futures::select_biased! {
            answered = asked.boxed().fuse() => answered,
            () = madsim::time::sleep(ANSWER_TIMEOUT).fuse() => Err(io::ErrorKind::TimedOut.into()),
        };
        answered.map_err(|error| {
            let host = &client.host;
            let text = error.to_string();
            host.nodes.note(
                host.id.node,
                "objects.unknown",
                &[("error", Value::Text(&text))],
            );
            unknown(error)
        })
    }
}

/// The answer did not come, or made no sense: the request may have been applied.
fn unknown(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic {
        store: "sim",
        source: Box::new(source),
    }
}

fn refused(path: &Path, answer: Answer) -> Error {
    let path = path.to_string();
    match answer {
        Answer::Exists => Error::AlreadyExists {
            path,
            source: "the object exists".into(),
        },
        Answer::Changed => Error::Precondition {
            path,
            source: "the object has another tag".into(),
        },
        Answer::Missing => Error::NotFound {
            path,
            source: "no such object".into(),
        },
        _ => unknown(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

fn meta(location: Path, tag: u64, size: u64) -> ObjectMeta {
    ObjectMeta {
        location,
        last_modified: Default::default(),
        size,
        e_tag: Some(tag.to_string()),
        version: None,
    }
}

fn not_implemented(operation: &str) -> Error {
    Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: "sim::objects".to_owned(),
    }
}

impl fmt::Debug for ObjectClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ObjectClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sim objects at {}", self.0.address)
    }
}

#[async_trait]
impl ObjectStore for ObjectClient {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let when = match opts.mode {
            PutMode::Overwrite => When::Always,
            PutMode::Create => When::Absent,
            PutMode::Update(version) => {
                let tag = version.e_tag.and_then(|tag| tag.parse().ok());
                When::Tagged(tag.ok_or_else(|| not_implemented("update without an e-tag"))?)
            }
        };
        let path = location.to_string();
        let body = Bytes::from(payload);
        match self.ask(Request::Put { path, when }, &body).await? {
            (Answer::Done { tag }, _) => Ok(PutResult {
                e_tag: Some(tag.to_string()),
                version: None,
                extensions: Default::default(),
            }),
            (answer, _) => Err(refused(location, answer)),
        }
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(not_implemented("put_multipart"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (path, head) = (location.to_string(), options.head);
        let (answer, body) = self.ask(Request::Get { path, head }, &[]).await?;
        let Answer::Found { tag, size } = answer else {
            return Err(refused(location, answer));
        };
        let meta = meta(location.clone(), tag, size);
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            None => 0..size,
            Some(range) => range.as_range(size).map_err(unknown)?,
        };
        let body = match head {
            true => body,
            false => body.slice(range.start as usize..range.end as usize),
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(futures::stream::iter([Ok(body)]).boxed()),
            meta,
            range,
            attributes: Attributes::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let client = self.clone();
        let delete = move |path: Path| {
            let client = client.clone();
            async move {
                let request = Request::Delete {
                    path: path.to_string(),
                };
                client.ask(request, &[]).await.map(|_| path)
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let client = self.clone();
        let prefix = prefix.map_or(String::new(), Path::to_string);
        let listed = async move {
            match client.ask(Request::List { prefix }, &[]).await? {
                (Answer::Listed(objects), _) => Ok(futures::stream::iter(objects)
                    .map(|(path, tag, size)| Ok(meta(Path::from(path), tag, size)))),
                _ => Err(unknown(io::Error::from(io::ErrorKind::InvalidData))),
            }
        };
        listed.try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let all: Vec<ObjectMeta> = self.list(prefix).try_collect().await?;
        let root = prefix.cloned().unwrap_or_default();
        let mut folders = BTreeSet::new();
        let mut objects = Vec::new();
        for object in all {
            let mut parts = object.location.prefix_match(&root).into_iter().flatten();
            let first = parts.next();
            match (first, parts.next()) {
                (Some(folder), Some(_)) => drop(folders.insert(root.clone().join(folder))),
                _ => objects.push(object.clone()),
            }
        }
        Ok(ListResult {
            common_prefixes: folders.into_iter().collect(),
            objects,
            extensions: Default::default(),
        })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let bytes = self
            .get_opts(from, GetOptions::default())
            .await?
            .bytes()
            .await?;
        let mode = match options.mode {
            CopyMode::Overwrite => PutMode::Overwrite,
            CopyMode::Create => PutMode::Create,
        };
        self.put_opts(to, bytes.into(), mode.into()).await.map(drop)
    }
}

async fn send(
    stream: &mut crate::net::Stream,
    head: &(impl Serialize + Sync),
    body: &[u8],
) -> io::Result<()> {
    let head = postcard::to_stdvec(head).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(8 + head.len() + body.len());
    frame.extend((head.len() as u32).to_be_bytes());
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(&head);
    frame.extend(body);
    stream.write_all(&frame).await
}

async fn receive(stream: &mut crate::net::Stream) -> io::Result<(Vec<u8>, Bytes)> {
    let mut lens = [0; 8];
    stream.read_exact(&mut lens).await?;
    let head_len = u32::from_be_bytes([lens[0], lens[1], lens[2], lens[3]]);
    let body_len = u32::from_be_bytes([lens[4], lens[5], lens[6], lens[7]]);
    if head_len > FRAME_BYTES_MAX || body_len > FRAME_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; head_len as usize + body_len as usize];
    stream.read_exact(&mut frame).await?;
    let body = Bytes::from(frame.split_off(head_len as usize));
    Ok((frame, body))
}
