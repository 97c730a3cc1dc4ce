//! Limits as well-behaved clients meet them.
use super::*;

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_places_come_back() {
    let server = start(Limits { max_connections: 2, ..Limits::default() }, None);
    let mut first = server.client().await;
    let mut second = server.client().await;
    first.get("/x").await.unwrap();
    second.get("/x").await.unwrap();
    assert!(closed(server.tcp().await).await, "the third is closed");
    second.get("/x").await.unwrap();
    drop(first);
    let again = async {
        loop {
            let io = server.tcp().await;
            if let Ok((requests, connection)) = h2::client::handshake(io).await {
                let mut client = Client { requests, connection: tokio::spawn(connection) };
                if client.get("/x").await.is_ok() {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(SOON, again).await.unwrap();
}

#[tokio::test]
async fn connections_of_one_address_can_be_limited() {
    let server = start(Limits { max_connections_per_ip: 1, ..Limits::default() }, None);
    let mut first = server.client().await;
    first.get("/x").await.unwrap();
    assert!(closed(server.tcp().await).await);
    first.get("/x").await.unwrap();
}

#[tokio::test]
async fn a_connection_without_requests_is_asked_to_go() {
    let limits = Limits { first_request_timeout: Duration::from_millis(200), ..Limits::default() };
    let limits = Limits { handshake_timeout: Duration::from_millis(100), ..limits };
    let server = start(limits, None);
    let idle = server.client().await;
    let mut used = server.client().await;
    used.get("/x").await.unwrap();
    let ended = tokio::time::timeout(SOON, idle.connection).await.expect("asked to go");
    assert!(ended.unwrap().is_ok(), "politely");
    tokio::time::sleep(Duration::from_millis(300)).await;
    used.get("/x").await.unwrap();
}

#[tokio::test]
async fn a_call_that_does_not_arrive_is_not_waited_for() {
    let server = start(Limits { request_timeout: Duration::from_millis(300), ..Limits::default() }, None);
    let mut client = server.client().await;
    let (answer, mut body) = client.requests.send_request(get("/read"), false).unwrap();
    // A byte now and then does not make it longer.
    let sending = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if body.send_data(Bytes::from_static(b"x"), false).is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let begun = std::time::Instant::now();
    let answer = tokio::select! {
        answer = answer => answer.unwrap(),
        () = sending => unreachable!("it sends for ever"),
    };
    let said = answer.into_body().data().await.unwrap().unwrap();
    assert_eq!(said, tonic::Code::DeadlineExceeded.to_string().as_bytes());
    assert!((Duration::from_millis(250)..SOON).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    server.opened(0).await;
    assert_eq!(client.get("/x").await.unwrap().0, http::StatusCode::OK, "the connection goes on");
}

#[tokio::test]
async fn an_old_connection_is_asked_to_go_after_its_calls() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(50),
        first_request_timeout: Duration::from_millis(100),
        max_connection_age: Some(Duration::from_millis(200)),
        ..Limits::default()
    };
    let server = start(limits, None);
    let mut client = server.client().await;
    let answer = client.send(get("/wait")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(client.get("/x").await.is_err(), "no new calls");
    server.go.notify_one();
    assert!(answer.await.is_ok());
    tokio::time::timeout(SOON, client.connection).await.expect("gone").unwrap().unwrap();
}

#[tokio::test]
async fn a_huge_header_is_refused_and_the_server_goes_on() {
    let server = start(Limits::default(), None);
    let mut client = server.client().await;
    let mut request = get("/x");
    request.headers_mut().insert("x-huge", "a".repeat(20 * 1024).parse().unwrap());
    let refused = match client.send(request).await.unwrap().await {
        Ok(response) => response.status() == http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Err(_) => true,
    };
    assert!(refused);
    let mut request = get("/x");
    request.headers_mut().insert("x-large", "a".repeat(12 * 1024).parse().unwrap());
    let mut client = server.client().await;
    assert_eq!(client.send(request).await.unwrap().await.unwrap().status(), http::StatusCode::OK);
}

#[tokio::test]
async fn a_slow_reader_holds_little() {
    let server = start(Limits::default(), None);
    let mut client = server.client().await;
    // Nothing is read from the body: flow control has to stop the server.
    let _unread = client.send(get("/endless")).await.unwrap().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(client.get("/x").await.unwrap().0, http::StatusCode::OK, "others on the connection go on");
    let kib = server.chunks.load(Ordering::SeqCst) * 64;
    assert!(
        (64..=64 + 512 + 2 * 64).contains(&kib),
        "{kib} KiB: the window, the buffer, a piece, and a chunk under way"
    );
    server.stop.hard.cancel();
    server.end().await;
}

/// Whether the server closes a fresh socket without a word.
async fn closed(mut io: TcpStream) -> bool {
    use tokio::io::AsyncReadExt;
    let mut byte = [0];
    match tokio::time::timeout(SOON, io.read(&mut byte)).await {
        Ok(Ok(read)) => read == 0,
        Ok(Err(_)) => true,
        Err(_) => false,
    }
}
