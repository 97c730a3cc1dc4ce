//! Draining, cutting, and what happens to calls when their connection goes.
use std::time::Instant;

use super::rude::Rude;
use super::*;

#[tokio::test]
async fn nothing_running_ends_at_once() {
    let mut best = Duration::MAX;
    // The best of three: a busy machine may take a while for anything.
    for _ in 0..3 {
        let server = start(Limits::default(), None);
        let mut client = server.client().await;
        assert_eq!(client.get("/x").await.unwrap(), (http::StatusCode::OK, String::new()));
        let start = Instant::now();
        server.stop.graceful.cancel();
        assert_eq!(server.end().await, Drained { aborted: 0 });
        best = best.min(start.elapsed());
        client.connection.await.unwrap().unwrap();
    }
    assert!(best < Duration::from_millis(500), "an idle client that answers delays nothing, but it took {best:?}");
}

#[tokio::test]
async fn a_running_call_is_answered_before_the_end() {
    let server = start(Limits::default(), None);
    let mut client = server.client().await;
    let answer = client.send(get("/wait")).await.unwrap();
    server.opened(1).await;
    server.stop.graceful.cancel();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!server.served.is_finished(), "longer than the wait for quiet connections");
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody new");
    server.go.notify_one();
    assert_eq!(answer.await.unwrap().status(), http::StatusCode::OK);
    assert_eq!(server.end().await, Drained { aborted: 0 });
}

#[tokio::test]
async fn connections_that_do_not_answer_delay_the_end_by_a_second() {
    let server = start(Limits::default(), None);
    let _silent = server.tcp().await;
    let _greeted = Rude::connect(&server).await;
    let start = Instant::now();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop.graceful.cancel();
    assert_eq!(server.end().await, Drained { aborted: 0 });
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_hard_stop_cuts_calls_that_do_not_end() {
    let server = start(Limits::default(), None);
    let mut client = server.client().await;
    let stuck = client.send(get("/stuck")).await.unwrap();
    let endless = client.send(get("/endless")).await.unwrap().await.unwrap();
    server.opened(2).await;
    server.stop.graceful.cancel();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let open = Arc::clone(&server.open);
    let start = Instant::now();
    server.stop.hard.cancel();
    assert_eq!(server.end().await, Drained { aborted: 1 });
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(open.load(Ordering::SeqCst), 0, "the calls were dropped");
    assert!(stuck.await.is_err());
    drop(endless);
}

#[tokio::test]
async fn a_hard_stop_alone_is_enough() {
    let server = start(Limits::default(), None);
    let mut client = server.client().await;
    client.get("/x").await.unwrap();
    server.stop.hard.cancel();
    assert_eq!(server.end().await, Drained { aborted: 1 });
}

#[tokio::test]
async fn calls_end_with_their_connection_and_with_their_stream() {
    let server = start(Limits::default(), None);
    let mut client = server.client().await;
    let stuck = client.send(get("/stuck")).await.unwrap();
    let _endless = client.send(get("/endless")).await.unwrap().await.unwrap();
    server.opened(2).await;
    drop(stuck);
    server.opened(1).await;
    client.connection.abort();
    server.opened(0).await;
    server.stop.graceful.cancel();
    server.end().await;
}
