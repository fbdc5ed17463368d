//! The proxy's methods do to a connection what they promise.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use ethhook_testkit::proxy::Proxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(100);

/// A server that sends back what it gets, and a proxy in front of it.
async fn echo() -> (Proxy, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            open.spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (Proxy::start(address).await.unwrap(), tasks)
}

async fn echoed(socket: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    socket.write_all(bytes).await?;
    let mut back = vec![0; bytes.len()];
    socket.read_exact(&mut back).await?;
    Ok(back)
}

#[tokio::test]
async fn it_passes_everything_and_the_end() {
    let (proxy, _server) = echo().await;
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (mut read, mut write) = socket.split();
    let mut back = Vec::new();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = async { read.read_to_end(&mut back).await.unwrap() };
    timeout(LONG, async { tokio::join!(send, receive) }).await.unwrap();
    assert!(back == sent);
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn cut_ends_connections_and_refuses_new_ones_until_restored() {
    let (proxy, _server) = echo().await;
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echoed(&mut socket, b"one").await.unwrap(), b"one");
    proxy.cut();
    assert!(timeout(LONG, socket.read_u8()).await.unwrap().is_err());
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(timeout(LONG, echoed(&mut socket, b"two")).await.unwrap().is_err());
    assert_eq!(proxy.connections(), 1);

    proxy.restore();
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echoed(&mut socket, b"three").await.unwrap(), b"three");

    // Cut and restored at once: the connection has ended nevertheless.
    proxy.cut();
    proxy.restore();
    assert!(timeout(LONG, socket.read_u8()).await.unwrap().is_err());
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echoed(&mut socket, b"four").await.unwrap(), b"four");
    proxy.drop_connections();
    assert!(timeout(LONG, socket.read_u8()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_blackhole_is_silent_and_what_it_held_comes_late() {
    let (proxy, _server) = echo().await;
    let mut old = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echoed(&mut old, b"one").await.unwrap(), b"one");
    proxy.blackhole();
    assert!(timeout(SHORT, echoed(&mut old, b"two")).await.is_err(), "silence");
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(timeout(SHORT, echoed(&mut new, b"new")).await.is_err(), "silence");
    proxy.restore();
    let mut late = [0; 3];
    timeout(LONG, old.read_exact(&mut late)).await.unwrap().unwrap();
    assert_eq!(&late, b"two");
    timeout(LONG, new.read_exact(&mut late)).await.unwrap().unwrap();
    assert_eq!(&late, b"new");
}

#[tokio::test]
async fn a_delay_costs_time_but_no_throughput() {
    let (proxy, _server) = echo().await;
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.delay(Duration::from_millis(100));
    let begin = Instant::now();
    assert_eq!(echoed(&mut socket, b"one").await.unwrap(), b"one");
    assert!(begin.elapsed() >= Duration::from_millis(200), "both ways");

    // 60 chunks of 16 KiB, one after the other, would take 12 s.
    let (mut read, mut write) = socket.split();
    let (sent, mut back) = (vec![7; 60 << 14], vec![0; 60 << 14]);
    let begin = Instant::now();
    let (written, received) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
    written.unwrap();
    received.unwrap();
    assert!(back == sent && begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

/// Reads until `bytes` have arrived; returns them and the number of reads.
async fn reads(socket: &mut TcpStream, bytes: usize) -> (Vec<u8>, usize) {
    let (mut all, mut reads) = (Vec::new(), 0);
    let mut buffer = [0; 1 << 12];
    while all.len() < bytes {
        let count = timeout(LONG, socket.read(&mut buffer)).await.unwrap().unwrap();
        assert!(count > 0, "ended after {} of {bytes}", all.len());
        all.extend_from_slice(&buffer[..count]);
        reads += 1;
    }
    (all, reads)
}

#[tokio::test]
async fn slices_are_of_one_byte_and_nothing_is_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
    let sent: Vec<u8> = (0..2_000_u32).map(|i| (i % 251) as u8).collect();
    for sliced in [false, true] {
        proxy.slice(sliced);
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (mut server, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
        client.write_all(&sent).await.unwrap();
        let (up, reads_up) = reads(&mut server, sent.len()).await;
        server.write_all(&sent).await.unwrap();
        let (down, reads_down) = reads(&mut client, sent.len()).await;
        assert!(up == sent && down == sent);
        // One read may return several slices, but never that many.
        let least = if sliced { 10 } else { 1 };
        let most = if sliced { sent.len() } else { 4 };
        for reads in [reads_up, reads_down] {
            assert!((least..=most).contains(&reads), "sliced {sliced}: {reads} reads");
        }
    }
}

#[tokio::test]
async fn an_answer_is_cut_after_so_many_bytes_and_the_next_is_whole() {
    let (proxy, _server) = echo().await;
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echoed(&mut socket, b"whole").await.unwrap(), b"whole");
    proxy.cut_after(8);
    assert_eq!(echoed(&mut socket, b"first").await.unwrap(), b"first");
    assert!(proxy.will_cut());
    socket.write_all(b"second").await.unwrap();
    let mut back = [0; 3];
    timeout(LONG, socket.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"sec");
    assert!(timeout(LONG, socket.read_u8()).await.unwrap().is_err());
    assert!(!proxy.will_cut());

    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echoed(&mut socket, b"whole again").await.unwrap(), b"whole again");
}
