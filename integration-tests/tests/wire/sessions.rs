//! Sessions: by connection, by cookie, by headers; their options, bounds and expiry.

use std::collections::HashMap;
use std::time::Duration;

use arrow_flight::FlightData;
use tonic::Code;

use crate::client::{Wire, descriptor, told};
use crate::{as_it_is, with_server};

#[derive(Clone, PartialEq, prost::Message)]
struct OptionValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(sfixed64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    List(Texts),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Texts {
    #[prost(string, repeated, tag = "1")]
    values: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Options {
    #[prost(map = "string, message", tag = "1")]
    options: HashMap<String, OptionValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Errors {
    #[prost(map = "string, message", tag = "1")]
    errors: HashMap<String, ErrorValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ErrorValue {
    #[prost(int32, tag = "1")]
    value: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Closed {
    #[prost(int32, tag = "1")]
    status: i32,
}

const INVALID_NAME: i32 = 1;
const INVALID_VALUE: i32 = 2;

fn text(value: &str) -> Option<Value> {
    Some(Value::Text(value.to_owned()))
}

async fn set(wire: &mut Wire, options: &[(&str, Option<Value>)]) -> Vec<(String, i32)> {
    let options =
        options.iter().map(|(name, value)| ((*name).to_owned(), OptionValue { value: value.clone() })).collect();
    let result: Errors = wire.flight_action("SetSessionOptions", &Options { options }).await.unwrap();
    let mut errors: Vec<_> = result.errors.into_iter().map(|(name, error)| (name, error.value)).collect();
    errors.sort();
    errors
}

async fn get(wire: &mut Wire) -> HashMap<String, String> {
    let result: Options = wire.flight_action("GetSessionOptions", &Options::default()).await.unwrap();
    let text = |value: OptionValue| match value.value {
        Some(Value::Text(text)) => text,
        other => panic!("{other:?} is not text"),
    };
    result.options.into_iter().map(|(name, value)| (name, text(value))).collect()
}

#[test]
fn options_are_settings_of_the_session() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        assert_eq!(get(&mut wire).await["time_zone"], "UTC");
        let errors = set(
            &mut wire,
            &[
                ("time_zone", text("Europe/Oslo")),
                ("batch_size", Some(Value::Int(99))),
                ("wire_types", Some(Value::List(Texts { values: vec!["views".into(), "large".into()] }))),
                ("no_such", text("1")),
                ("target_partitions", text("many")),
                ("endpoints", Some(Value::Double(1.5))),
                ("statement_timeout", Some(Value::Bool(true))),
            ],
        )
        .await;
        let expected = [
            ("endpoints", INVALID_VALUE),
            ("no_such", INVALID_NAME),
            ("statement_timeout", INVALID_VALUE),
            ("target_partitions", INVALID_VALUE),
        ];
        assert_eq!(errors, expected.map(|(name, value)| (name.to_owned(), value)));
        let options = get(&mut wire).await;
        assert_eq!((options["time_zone"].as_str(), options["batch_size"].as_str()), ("Europe/Oslo", "99"));
        assert_eq!(options["wire_types"], "views,large");
        // SET and the action are the same thing.
        assert!(wire.rows("SHOW time_zone").await[0].starts_with("time_zone Europe/Oslo"));
        wire.query("SET time_zone = '+01:00'").await.unwrap();
        assert_eq!(get(&mut wire).await["time_zone"], "+01:00");
        // No value unsets.
        assert_eq!(set(&mut wire, &[("time_zone", None)]).await, []);
        assert_eq!(get(&mut wire).await["time_zone"], "UTC");
        let closed: Closed = wire.flight_action("CloseSession", &Closed::default()).await.unwrap();
        assert_eq!(closed.status, 1);
        assert_eq!(get(&mut wire).await["batch_size"], "8192");
        server
    });
}

#[test]
fn a_connection_is_a_session_and_a_cookie_carries_it_to_another() {
    with_server(as_it_is, |server| async {
        let (mut first, mut second) = (Wire::new(&server).await, Wire::new(&server).await);
        let action = arrow_flight::Action {
            r#type: "SetSessionOptions".into(),
            body: {
                use prost::Message;
                let options = [("batch_size".to_owned(), OptionValue { value: Some(Value::Int(123)) })].into();
                Options { options }.encode_to_vec().into()
            },
        };
        let request = first.request(action);
        let response = first.client.do_action(request).await.unwrap();
        let cookie = response.metadata().get("set-cookie").unwrap().to_str().unwrap().to_owned();
        assert_eq!(get(&mut first).await["batch_size"], "123");
        assert_eq!(get(&mut second).await["batch_size"], "8192", "another connection, another session");
        let pair = cookie.split(';').next().unwrap();
        assert!(pair.starts_with("arrow_flight_session_id="), "{cookie}");
        let mut joined = second.with("cookie", pair);
        assert_eq!(get(&mut joined).await["batch_size"], "123");
        // The cookie stays the name of the session, also for who has it from the start.
        set(&mut joined, &[("batch_size", Some(Value::Int(124)))]).await;
        assert_eq!(get(&mut first).await["batch_size"], "124");
        let mut made_up = second.with("cookie", "arrow_flight_session_id=00000000-0000-0000-0000-000000000001");
        assert_eq!(get(&mut made_up).await["batch_size"], "8192");
        server
    });
}

#[test]
fn a_header_changes_one_call() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let mut other = wire.with("x-updraft-time-zone", "Asia/Tokyo").with("x-updraft-batch-size", "10");
        assert!(other.rows("SHOW time_zone").await[0].starts_with("time_zone Asia/Tokyo"));
        assert_eq!(other.rows("SELECT '2024-01-01 00:00:00'::timestamptz").await, ["2024-01-01T00:00:00+09:00"]);
        assert_eq!(get(&mut other).await["batch_size"], "10");
        assert_eq!(get(&mut wire).await["batch_size"], "8192");
        let status = wire.with("x-updraft-time-zone", "Mars").query("SELECT 1").await.unwrap_err();
        assert!(told(&status).contains("InvalidArgument: cannot set \"time_zone\" to 'Mars'"), "{status}");
        server
    });
}

#[test]
fn sessions_are_bounded_and_expire() {
    let few = |config: &mut updraft_server::Config| {
        config.engine.sessions_max = 2;
        config.engine.session_ttl = Duration::from_millis(1500);
    };
    with_server(few, |server| async {
        let mut wires = Vec::new();
        for _ in 0..3 {
            wires.push(Wire::new(&server).await);
        }
        for wire in &mut wires[..2] {
            wire.query("SET batch_size = 10").await.unwrap();
        }
        let status = wires[2].query("SET batch_size = 10").await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert_eq!(wires[2].rows("SELECT 1").await, ["1"], "a session without changes costs nothing");
        tokio::time::sleep(Duration::from_millis(1700)).await;
        wires[2].query("SET batch_size = 10").await.unwrap();
        assert_eq!(get(&mut wires[0]).await["batch_size"], "8192", "it has expired");
        server
    });
}

#[test]
fn binding_offers_the_cookie_too() {
    with_server(as_it_is, |server| async {
        let mut wire = Wire::new(&server).await;
        let update =
            arrow_flight::sql::CommandStatementUpdate { query: "SET batch_size = 7".into(), transaction_id: None };
        let message = FlightData { flight_descriptor: Some(descriptor(&update)), ..Default::default() };
        let (_, headers) = wire.put(futures::stream::iter([message])).await.unwrap();
        let cookie = headers.get("set-cookie").unwrap().to_str().unwrap();
        let mut elsewhere = Wire::new(&server).await.with("cookie", cookie.split(';').next().unwrap());
        assert_eq!(get(&mut elsewhere).await["batch_size"], "7");
        server
    });
}
