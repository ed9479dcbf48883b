//! One test body for the simulated and the real disk, network and object store.
//!
//! The simulated ones run in the simulated build, the real ones in the real build (`cargo live-test`);
//! the real disk in both.

use bytes::Bytes;
use engine::host::{self, Disk, Net};
use futures::TryStreamExt;
use object_store::{path::Path, Error, ObjectStore, ObjectStoreExt, PutMode};
use std::{io::ErrorKind, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What `Disk` promises.
async fn disk_contract(disk: &dyn Disk) {
    let file = disk
        .open("a/b/file")
        .await
        .expect("created with its folders");
    assert_eq!(file.size().await.unwrap(), 0);
    file.write_at(0, b"hello").await.unwrap();
    file.write_at(5, b" world").await.unwrap();
    file.write_at(0, b"J").await.unwrap();
    assert_eq!(
        file.read_at(0, 100).await.unwrap(),
        Bytes::from("Jello world")
    );
    assert_eq!(file.read_at(6, 3).await.unwrap(), Bytes::from("wor"));
    assert_eq!(
        file.read_at(11, 3).await.unwrap(),
        Bytes::new(),
        "nothing at the end"
    );
    assert_eq!(
        file.read_at(99, 3).await.unwrap(),
        Bytes::new(),
        "nothing behind it"
    );
    file.truncate(5).await.unwrap();
    file.truncate(7).await.unwrap();
    assert_eq!(
        file.read_at(0, 100).await.unwrap(),
        Bytes::from("Jello\0\0")
    );
    file.sync().await.unwrap();
    disk.sync_dir("a/b").await.unwrap();

    let again = disk.open("a/b/file").await.unwrap();
    assert_eq!(
        again.size().await.unwrap(),
        7,
        "the same file, not an empty one"
    );

    disk.open("a/b/other")
        .await
        .unwrap()
        .write_at(0, b"x")
        .await
        .unwrap();
    assert_eq!(disk.list("a/b").await.unwrap(), ["file", "other"]);
    assert_eq!(
        disk.list("a").await.unwrap(),
        Vec::<String>::new(),
        "files, not folders"
    );
    assert_eq!(disk.list("nowhere").await.unwrap(), Vec::<String>::new());

    disk.rename("a/b/other", "a/b/file")
        .await
        .expect("replaces what was there");
    assert_eq!(disk.list("a/b").await.unwrap(), ["file"]);
    let replaced = disk.open("a/b/file").await.unwrap();
    assert_eq!(replaced.read_at(0, 9).await.unwrap(), Bytes::from("x"));

    disk.remove("a/b/file").await.unwrap();
    assert_eq!(disk.list("a/b").await.unwrap(), Vec::<String>::new());
    let gone = disk.remove("a/b/file").await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let gone = disk.rename("a/b/file", "a/b/new").await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);

    folders_contract(disk).await;

    host::replace_file(disk, "small", b"one").await.unwrap();
    host::replace_file(disk, "small", b"two!").await.unwrap();
    assert_eq!(
        host::read_file(disk, "small").await.unwrap(),
        Some(Bytes::from("two!"))
    );
    assert_eq!(host::read_file(disk, "missing").await.unwrap(), None);
}

/// What `Disk` promises of folders: they are there from their first file on, until they are removed.
async fn folders_contract(disk: &dyn Disk) {
    fn refused<T>(result: std::io::Result<T>) -> ErrorKind {
        result.err().expect("refused").kind()
    }
    let none = Vec::<String>::new();
    disk.sync_dir("").await.expect("the root is always there");
    for gone in ["never", "never/used", "a/never"] {
        let synced = disk.sync_dir(gone).await;
        assert_eq!(refused(synced), ErrorKind::NotFound, "{gone}");
        let removed = disk.remove_folder(gone).await;
        assert_eq!(refused(removed), ErrorKind::NotFound, "{gone}");
        assert_eq!(disk.folders(gone).await.unwrap(), none);
    }
    // Asking makes nothing.
    assert_eq!(disk.folders("").await.unwrap(), ["a"]);
    assert_eq!(
        disk.folders("a").await.unwrap(),
        ["b"],
        "emptied, and still there"
    );
    disk.sync_dir("a/b")
        .await
        .expect("emptied, and still there");
    disk.open("a/c/d/file").await.unwrap();
    assert_eq!(disk.folders("a").await.unwrap(), ["b", "c"]);
    assert_eq!(
        disk.folders("a/c/d").await.unwrap(),
        none,
        "folders, not files"
    );
    let moved = disk.rename("a/c/d/file", "a/new/file").await;
    assert_eq!(
        refused(moved),
        ErrorKind::NotFound,
        "a rename makes no folder"
    );
    assert_eq!(refused(disk.open("a/c").await), ErrorKind::IsADirectory);
    let within = disk.open("a/c/d/file/x").await;
    assert_eq!(refused(within), ErrorKind::NotADirectory);
    for full in ["a/c/d", "a/c"] {
        let removed = disk.remove_folder(full).await;
        assert_eq!(refused(removed), ErrorKind::DirectoryNotEmpty, "{full}");
    }
    disk.remove("a/c/d/file").await.unwrap();
    for emptied in ["a/c/d", "a/c", "a/b"] {
        disk.remove_folder(emptied).await.unwrap();
        let synced = disk.sync_dir(emptied).await;
        assert_eq!(refused(synced), ErrorKind::NotFound, "{emptied}");
    }
    disk.sync_dir("a").await.unwrap();
    assert_eq!(disk.folders("a").await.unwrap(), none);
    disk.open("a/b/again")
        .await
        .expect("a folder can come back");
    assert_eq!(disk.list("a/b").await.unwrap(), ["again"]);
}

/// What `Net` promises. `address` is where to listen; port 0 is any.
async fn net_contract(net: &dyn Net, listen: &str, host: &str) {
    let listener = net.listen(listen).await.unwrap();
    let address = format!("{host}:{}", listener.port());
    let taken = net.listen(&address).await.err().expect("the port is taken");
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);

    // Bytes arrive in order, in both directions; half of a connection can be closed.
    let mut client = net.connect(&address).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    server
        .read_to_end(&mut got)
        .await
        .expect("ends where the peer closed its half");
    assert_eq!(got, b"ping");
    server
        .write_all(b"pong")
        .await
        .expect("the other half is open");
    server.flush().await.unwrap();
    let mut got = [0; 4];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"pong");
    drop(server);
    assert_eq!(
        client.read(&mut got).await.unwrap(),
        0,
        "the end of the stream"
    );

    // A writer waits when nobody reads.
    let mut client = net.connect(&address).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let much = vec![7; 64 << 20];
    let write = tokio::time::timeout(Duration::from_millis(500), client.write_all(&much));
    assert!(write.await.is_err(), "64 MiB fit into no window");
    let mut some = vec![0; 8_000];
    server.read_exact(&mut some).await.unwrap();
    assert!(some.iter().all(|byte| *byte == 7));

    // A peer that goes with unread bytes resets the connection: nothing can be written to it any more, though what it
    // has said itself is unread, too.
    server.write_all(b"unread").await.unwrap();
    drop(server);
    is_told_that_nobody_reads(&mut client, &much[..1000]).await;

    // So it does, whoever still writes, if it has read everything, and if what it has written is still unread.
    let mut client = net.connect(&address).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"late").await.unwrap();
    server.flush().await.unwrap();
    drop(server);
    is_told_that_nobody_reads(&mut client, b"still").await;

    drop(listener);
    let refused = net.connect(&address).await.err().expect("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// Whoever writes on is told so within a second.
async fn is_told_that_nobody_reads(client: &mut Box<dyn host::Connection>, bytes: &[u8]) {
    let mut seen = None;
    for _ in 0..100 {
        if let Err(error) = client.write_all(bytes).await {
            seen = Some(error.kind());
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        matches!(
            seen,
            Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
        ),
        "{seen:?}"
    );
}

/// What we need of an object store.
async fn objects_contract(objects: &dyn ObjectStore) {
    let path = |name: &str| Path::from(name);
    let missing = objects.get(&path("job/a")).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");

    let place = path("job/a");
    let create = |bytes: &'static str| {
        let payload = Bytes::from(bytes).into();
        objects.put_opts(&place, payload, PutMode::Create.into())
    };
    create("one").await.expect("the place is free");
    let taken = create("two").await.unwrap_err();
    assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
    let read = objects
        .get(&path("job/a"))
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(read, Bytes::from("one"), "create does not replace");

    objects.put(&path("job/a"), "three".into()).await.unwrap();
    let read = objects
        .get(&path("job/a"))
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(read, Bytes::from("three"), "put does");
    assert_eq!(
        objects.get_range(&path("job/a"), 1..3).await.unwrap(),
        Bytes::from("hr")
    );
    assert_eq!(objects.head(&path("job/a")).await.unwrap().size, 5);

    objects.put(&path("job/sub/b"), "x".into()).await.unwrap();
    objects
        .put(&path("jobs"), "not below job".into())
        .await
        .unwrap();
    let listed: Vec<_> = objects
        .list(Some(&path("job")))
        .try_collect()
        .await
        .unwrap();
    let mut names: Vec<String> = listed.iter().map(|o| o.location.to_string()).collect();
    names.sort();
    assert_eq!(names, ["job/a", "job/sub/b"]);
    let level = objects
        .list_with_delimiter(Some(&path("job")))
        .await
        .unwrap();
    assert_eq!(level.common_prefixes, [path("job/sub")]);
    assert_eq!(level.objects.len(), 1);

    objects.copy(&path("job/a"), &path("job/c")).await.unwrap();
    let kept = objects
        .copy_if_not_exists(&path("job/a"), &path("job/c"))
        .await
        .unwrap_err();
    assert!(matches!(kept, Error::AlreadyExists { .. }), "{kept}");
    objects.delete(&path("job/a")).await.unwrap();
    assert!(objects.get(&path("job/a")).await.is_err());
}

#[cfg(madsim)]
mod simulated {
    use super::*;
    use crate::stage::play;

    #[test]
    fn disk() {
        play(0, |host| async move { disk_contract(&*host.disk).await });
    }

    #[test]
    fn net() {
        play(0, |host| async move {
            net_contract(&*host.net, "actor:77", "actor").await
        });
    }

    #[test]
    fn objects() {
        play(
            0,
            |host| async move { objects_contract(&*host.objects).await },
        );
    }

    /// The real disk works in a simulation too, its blocking calls run inline.
    #[test]
    fn real_disk_beside_it() {
        play(0, |_| async move {
            let folder = tempfile::tempdir().unwrap();
            disk_contract(&host::real::RealDisk::new(folder.path()).unwrap()).await;
        });
    }
}

#[cfg(not(madsim))]
mod real {
    use super::*;
    use engine::host::real::{RealDisk, RealNet};
    use object_store::local::LocalFileSystem;

    #[tokio::test]
    async fn disk() {
        let folder = tempfile::tempdir().unwrap();
        disk_contract(&RealDisk::new(folder.path()).unwrap()).await;
    }

    #[tokio::test]
    async fn net() {
        net_contract(&RealNet, "127.0.0.1:0", "127.0.0.1").await;
    }

    #[tokio::test]
    async fn objects() {
        let folder = tempfile::tempdir().unwrap();
        objects_contract(&LocalFileSystem::new_with_prefix(folder.path()).unwrap()).await;
    }
}
