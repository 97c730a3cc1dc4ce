//! Clients that keep to no rules, frame by frame.
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const WINDOW_UPDATE: u8 = 8;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A socket that sends what it likes.
pub(super) struct Rude(TcpStream);

pub(super) struct RawFrame {
    pub(super) kind: u8,
    pub(super) stream: u32,
    payload: Vec<u8>,
}

impl RawFrame {
    /// The last four bytes: the error code of RST_STREAM, and of a GOAWAY without text.
    pub(super) fn code(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }
}

impl Rude {
    /// Connects and sends the preface with empty settings, then nothing.
    pub(super) async fn connect(server: &Server) -> Self {
        let mut rude = Self(server.tcp().await);
        rude.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        rude.0.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        rude
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// The next frame, or `None` at the end of the connection.
    pub(super) async fn read(&mut self) -> Option<RawFrame> {
        let frame = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some(RawFrame { kind: head[3], stream, payload })
        };
        tokio::time::timeout(SOON, frame).await.expect("a frame or the end")
    }
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// `GET http` of `path`, the rest from HPACK's static table, with the end of the stream.
pub(super) fn request(stream: u32, path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    let head = [&[0x82, 0x86, 0x04, length], path.as_bytes()].concat();
    frame(HEADERS, 0x5, stream, &head)
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let server = start(Limits::default(), None);
    let mut rude = Rude::connect(&server).await;
    for n in 0..140 {
        rude.write(&request(2 * n + 1, "/")).await.unwrap();
    }
    let mut refused = 0;
    while refused < 12 {
        let frame = rude.read().await.expect("the connection stays");
        if frame.kind == RST_STREAM {
            assert_eq!(frame.code(0), Some(REFUSED_STREAM));
            refused += 1;
        }
    }
    server.opened(128).await;
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let server = start(Limits::default(), None);
    let mut rude = Rude::connect(&server).await;
    let mut attack = Vec::new();
    for n in 0..5000 {
        attack.extend(request(2 * n + 1, "/"));
        attack.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    let _ = rude.write(&attack).await;
    let mut calm = false;
    while let Some(frame) = rude.read().await {
        calm |= frame.kind == GOAWAY && frame.code(4) == Some(ENHANCE_YOUR_CALM);
    }
    assert!(calm, "told to calm down, then closed");
    server.opened(0).await;
    assert!(server.client().await.get("/x").await.is_ok(), "others go on");
}

#[tokio::test]
async fn answers_that_are_reset_once_they_began_leave_nothing() {
    let server = start(Limits::default(), None);
    let mut rude = Rude::connect(&server).await;
    // Only the windows of the streams bound what each gets.
    rude.write(&frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes())).await.unwrap();
    for stream in (1..2000).step_by(2) {
        rude.write(&request(stream, "/endless")).await.unwrap();
        while !matches!(rude.read().await, Some(frame) if frame.kind == DATA && frame.stream == stream) {}
        rude.write(&frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())).await.unwrap();
    }
    server.opened(0).await;
    assert_eq!(server.held.load(Ordering::SeqCst), 0);
    rude.write(&request(2001, "/x")).await.unwrap();
    while !matches!(rude.read().await, Some(frame) if frame.kind == HEADERS && frame.stream == 2001) {}
    assert!(server.client().await.get("/x").await.is_ok(), "others go on");
}

#[tokio::test]
async fn sockets_that_say_too_little_are_closed_in_time() {
    let limits = Limits { handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let server = start(limits, None);
    let starts: [&[u8]; 4] =
        [b"", b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04"];
    for start in starts {
        let begun = std::time::Instant::now();
        let mut socket = Rude(server.tcp().await);
        socket.write(start).await.unwrap();
        while socket.read().await.is_some() {}
        let took = begun.elapsed();
        assert!((Duration::from_millis(250)..Duration::from_secs(5)).contains(&took), "{start:?}: {took:?}");
    }
}

#[tokio::test]
async fn other_protocols_are_closed_at_once() {
    let server = start(Limits::default(), None);
    for start in [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n                ".as_slice(), &[0; 64], &[0xff; 64]] {
        let mut socket = Rude(server.tcp().await);
        socket.write(start).await.unwrap();
        while socket.read().await.is_some() {}
    }
    assert!(server.client().await.get("/x").await.is_ok());
}

#[tokio::test]
async fn a_peer_that_has_vanished_is_noticed_and_its_calls_end() {
    let limits = Limits {
        keepalive_interval: Duration::from_millis(100),
        keepalive_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = start(limits, None);
    let mut vanished = Rude::connect(&server).await;
    vanished.write(&request(1, "/")).await.unwrap();
    server.opened(1).await;
    // It never answers the ping.
    server.opened(0).await;
    while vanished.read().await.is_some() {}
}
