//! Clients that ask for much and take nothing, or next to nothing, of it.
use std::time::Instant;

use super::rude::{HEADERS, RST_STREAM, Rude, SETTINGS, WINDOW_UPDATE, frame, request};
use super::*;

const PATIENCE: Duration = Duration::from_millis(400);
const CANCEL: u32 = 8;

fn impatient() -> Server {
    start_with(Limits::default(), Patience(PATIENCE), None)
}

fn endless(stream: u32) -> Vec<u8> {
    request(stream, "/endless")
}

/// Reads, but gives no window, until the server has said what ends with `kind`.
async fn until(rude: &mut Rude, kind: u8) -> (u32, Option<u32>) {
    loop {
        let frame = rude.read().await.expect("the connection stays");
        if frame.kind == kind {
            return (frame.stream, frame.code(0));
        }
    }
}

#[tokio::test]
async fn streams_without_window_are_reset_and_what_they_hold_is_freed() {
    let server = impatient();
    let mut rude = Rude::connect(&server).await;
    let begun = Instant::now();
    for stream in [1, 3, 5] {
        rude.write(&endless(stream)).await.unwrap();
    }
    let mut reset = Vec::new();
    for _ in 0..3 {
        let (stream, code) = until(&mut rude, RST_STREAM).await;
        assert_eq!(code, Some(CANCEL));
        reset.push(stream);
    }
    assert!(begun.elapsed() >= PATIENCE, "{:?}", begun.elapsed());
    reset.sort_unstable();
    assert_eq!(reset, [1, 3, 5]);
    server.opened(0).await;
    assert_eq!(server.held.load(Ordering::SeqCst), 0, "neither the answers nor HTTP/2 have any of it");
    // Nothing of the window of the connection is left, but this answer needs none of it.
    rude.write(&request(7, "/")).await.unwrap();
    server.opened(1).await;
}

#[tokio::test]
async fn a_stream_that_never_had_a_window_is_reset() {
    let server = impatient();
    let no_window = [0, 4, 0, 0, 0, 0];
    let mut rude = Rude::connect(&server).await;
    rude.write(&frame(SETTINGS, 0, 0, &no_window)).await.unwrap();
    rude.write(&endless(1)).await.unwrap();
    until(&mut rude, HEADERS).await;
    assert_eq!(until(&mut rude, RST_STREAM).await, (1, Some(CANCEL)));
    server.opened(0).await;
}

#[tokio::test]
async fn a_byte_now_and_then_is_not_enough() {
    let server = impatient();
    let mut rude = Rude::connect(&server).await;
    rude.write(&endless(1)).await.unwrap();
    let mut more = Vec::new();
    for stream in [0, 1] {
        more.extend(frame(WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes()));
    }
    let reset = async {
        loop {
            rude.write(&more).await.unwrap();
            let next = tokio::time::timeout(Duration::from_millis(20), rude.read()).await;
            if next.is_ok_and(|frame| frame.expect("the connection stays").kind == RST_STREAM) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, reset).await.expect("it is reset");
    server.opened(0).await;
}

#[tokio::test]
async fn a_slow_reader_is_not_cut() {
    let server = impatient();
    let mut client = server.client().await;
    let mut answer = client.send(get("/endless")).await.unwrap().await.unwrap().into_body();
    let begun = Instant::now();
    let mut bytes = 0;
    while begun.elapsed() < 4 * PATIENCE {
        tokio::time::sleep(PATIENCE / 4).await;
        let data = answer.data().await.expect("it goes on").expect("no reset");
        answer.flow_control().release_capacity(data.len()).unwrap();
        bytes += data.len();
    }
    assert!(bytes < 16 * PATIENCE.as_millis() as usize * 1024, "{bytes} bytes: it was not slow");
    server.opened(1).await;
}

#[tokio::test]
async fn who_waits_for_the_server_is_not_cut() {
    let server = impatient();
    let mut client = server.client().await;
    let answer = client.send(get("/wait")).await.unwrap();
    tokio::time::sleep(3 * PATIENCE).await;
    server.go.notify_one();
    assert_eq!(answer.await.unwrap().status(), http::StatusCode::OK);
}

#[tokio::test]
async fn a_connection_whose_socket_takes_nothing_is_cut() {
    let server = impatient();
    let mut rude = Rude::connect(&server).await;
    let all = (i32::MAX as u32).to_be_bytes();
    rude.write(&frame(SETTINGS, 0, 0, &[&[0, 4], all.as_slice()].concat())).await.unwrap();
    rude.write(&frame(WINDOW_UPDATE, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes())).await.unwrap();
    for stream in [1, 3, 5] {
        rude.write(&endless(stream)).await.unwrap();
    }
    server.opened(3).await;
    server.opened(0).await;
    let freed = async {
        while server.held.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, freed).await.expect("nothing is held for it");
    server.stop.graceful.cancel();
    assert_eq!(server.end().await, Drained { aborted: 0 });
}

#[tokio::test]
async fn a_stalled_client_does_not_hold_up_the_end() {
    let server = start_with(Limits::default(), Patience(Duration::from_secs(3600)), None);
    let mut rude = Rude::connect(&server).await;
    rude.write(&endless(1)).await.unwrap();
    server.opened(1).await;
    server.stop.draining.cancel();
    server.opened(0).await;
    server.stop.graceful.cancel();
    assert_eq!(server.end().await, Drained { aborted: 0 });
}
