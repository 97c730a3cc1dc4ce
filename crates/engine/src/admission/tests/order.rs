//! Who is next and who is refused, as tables of events.

use std::collections::HashMap;
use std::fmt::Write;

use expect_test::{Expect, expect};

use super::*;
use crate::admission::queue::PASSES_MAX;

/// What happens to one lane, word by word: `a5` = a query of `a` comes that needs 5 bytes, `-a1` = the first
/// query of `a` ends or leaves, `stop` and `go` = pause, `+9` = that many bytes become free. After `=` who is
/// admitted then, and `!` who is refused.
fn told(config: &Config, bytes: i64, events: &str) -> Vec<String> {
    let limits = PerPrincipal::limits(config, 1, 1 << 30);
    let mut queue = Queue::<Grant, String>::new(config.max_concurrent_queries, config.max_queued);
    let budget = Budget::new(bytes);
    let (mut counts, mut tickets, mut running) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut lines = Vec::new();
    for event in events.split_whitespace() {
        let mut joined = None;
        match (event, event.split_at(1)) {
            ("stop" | "go", _) => queue.pause(event == "stop"),
            (_, ("+", bytes)) => drop(Grant(budget.clone(), bytes.parse().expect("a number"))),
            (_, ("-", name)) => match running.remove(name) {
                Some(grant) => {
                    drop::<Grant>(grant);
                    queue.ended(&principal(&name[..1]), Some(Duration::from_secs(1)));
                }
                None => drop(queue.leave(&principal(&name[..1]), tickets[name])),
            },
            (_, (who, bytes)) => {
                let count = counts.entry(who.to_owned()).and_modify(|count| *count += 1).or_insert(1);
                let name = format!("{who}{count}");
                let take = budget.take(bytes.parse().expect("a number"));
                let who = principal(who);
                tickets.insert(name.clone(), queue.join(&who, limits.of(&who), name, Box::new(take)));
                joined = Some(who);
            }
        }
        let mut told = event.to_owned();
        while let Some(admitted) = queue.next() {
            let _ = write!(told, " ={}", admitted.waited.who);
            running.insert(admitted.waited.who, admitted.grant);
        }
        if let Some(refused) = joined.and_then(|joined| queue.refused(&joined)) {
            let whose = refused.principal.map_or_else(|| "server".to_owned(), |whose| whose.name().to_owned());
            let _ = write!(told, " !{} ({whose}: {} of {})", refused.waited.who, refused.queued, refused.limit);
        }
        lines.push(told);
    }
    lines
}

fn check(config: &Config, bytes: i64, events: &str, expected: &Expect) {
    expected.assert_eq(&told(config, bytes, events).join("\n"));
}

#[test]
fn first_come_first_served_within_a_principal() {
    check(
        &config(&[]),
        100,
        "a1 a1 a1 a1 -a4 -a1 -a2",
        &expect![[r#"
        a1 =a1
        a1 =a2
        a1
        a1
        -a4
        -a1 =a3
        -a2"#]],
    );
}

#[test]
fn principals_take_turns_however_many_each_has_waiting() {
    let config = Config { max_concurrent_queries: 1, max_queued: 100, ..config(&[]) };
    check(
        &config,
        100,
        "a1 a1 a1 a1 b1 b1 c1 -a1 -b1 -c1 -a2 -b2 -a3",
        &expect![[r#"
        a1 =a1
        a1
        a1
        a1
        b1
        b1
        c1
        -a1 =b1
        -b1 =c1
        -c1 =a2
        -a2 =b2
        -b2 =a3
        -a3 =a4"#]],
    );
}

#[test]
fn who_runs_less_goes_first() {
    let config = Config { max_concurrent_queries: 3, max_queued: 100, ..config(&[]) };
    check(
        &config,
        100,
        "a1 a1 a1 a1 a1 b1 b1 b1 -a1 -b1 -b2",
        &expect![[r#"
        a1 =a1
        a1 =a2
        a1 =a3
        a1
        a1
        b1
        b1
        b1
        -a1 =b1
        -b1 =b2
        -b2 =b3"#]],
    );
}

#[test]
fn priority_weighs_the_turns() {
    let heavy = PrincipalConfig { priority: Some(30), ..PrincipalConfig::default() };
    let config = Config { max_concurrent_queries: 1, max_queued: 100, ..config(&[("a", heavy)]) };
    check(
        &config,
        100,
        "c1 b1 b1 b1 a1 a1 a1 a1 a1 a1 a1 -c1 -b1 -a1 -a2 -a3 -a4 -b2 -a5 -a6 -a7",
        &expect![[r#"
            c1 =c1
            b1
            b1
            b1
            a1
            a1
            a1
            a1
            a1
            a1
            a1
            -c1 =b1
            -b1 =a1
            -a1 =a2
            -a2 =a3
            -a3 =a4
            -a4 =b2
            -b2 =a5
            -a5 =a6
            -a6 =a7
            -a7 =b3"#]],
    );
}

#[test]
fn one_query_after_the_other_does_not_jump_the_queue() {
    let light = PrincipalConfig { priority: Some(5), ..PrincipalConfig::default() };
    let config = Config { max_concurrent_queries: 1, max_queued: 100, ..config(&[("b", light)]) };
    // `b` comes back as soon as it ended; with half of `a`'s priority it is served half as often.
    check(
        &config,
        100,
        "b1 a1 a1 a1 a1 a1 a1 -b1 b1 -a1 -a2 -a3 -b2 b1 -a4 -a5 -b3",
        &expect![[r#"
            b1 =b1
            a1
            a1
            a1
            a1
            a1
            a1
            -b1 =a1
            b1
            -a1 =a2
            -a2 =a3
            -a3 =b2
            -b2 =a4
            b1
            -a4 =a5
            -a5 =b3
            -b3 =a6"#]],
    );
}

#[test]
fn turns_are_not_saved_up() {
    let config = Config { max_concurrent_queries: 3, max_queued: 100, ..config(&[]) };
    // `a` asks for nothing more while `b` is served often; when both wait they take turns from there.
    check(
        &config,
        100,
        "a1 b1 -b1 b1 -b2 b1 -b3 b1 b1 a1 b1 a1 b1 -b5 -a2 -b6 -a3",
        &expect![[r#"
            a1 =a1
            b1 =b1
            -b1
            b1 =b2
            -b2
            b1 =b3
            -b3
            b1 =b4
            b1 =b5
            a1
            b1
            a1
            b1
            -b5 =a2
            -a2 =b6
            -b6 =a3
            -a3 =b7"#]],
    );
}

#[test]
fn a_principal_at_its_own_bound_is_passed() {
    let own = PrincipalConfig { max_concurrent_queries: Some(1), max_queued: Some(1), ..PrincipalConfig::default() };
    check(
        &config(&[("a", own)]),
        100,
        "a1 a1 a1 b1 -b1 -a1",
        &expect![[r#"
        a1 =a1
        a1
        a1 !a3 (a: 1 of 1)
        b1 =b1
        -b1
        -a1 =a2"#]],
    );
}

#[test]
fn a_full_queue_refuses_who_waits_with_the_most() {
    check(
        &config(&[]),
        100,
        "a1 a1 a1 a1 a1 a1 a1 b1 c1 c1 c1 -a1",
        &expect![[r#"
            a1 =a1
            a1 =a2
            a1
            a1
            a1
            a1
            a1 !a7 (server: 4 of 4)
            b1 !a6 (server: 4 of 4)
            c1 !a5 (server: 4 of 4)
            c1 !c2 (server: 4 of 4)
            c1 !c3 (server: 4 of 4)
            -a1 =b1"#]],
    );
}

#[test]
fn without_a_queue_what_cannot_run_is_refused() {
    let config = Config { max_queued: 0, ..config(&[]) };
    check(
        &config,
        100,
        "a1 b1 c1 -a1 c1",
        &expect![[r#"
            a1 =a1
            b1 =b1
            c1 !c1 (server: 0 of 0)
            -a1
            c1 =c2"#]],
    );
}

#[test]
fn what_does_not_fit_lets_others_pass_but_not_for_ever() {
    let config = Config { max_concurrent_queries: 3, max_queued: 100, ..config(&[]) };
    let mut events = "a4 b9 c1".to_owned();
    for small in 1..=PASSES_MAX + 1 {
        let _ = write!(events, " c1 -c{small}");
    }
    // Held: even what fits waits now, until the large one has had its turn.
    events.push_str(&format!(" d1 -c{} -a1", PASSES_MAX + 1));
    let told = told(&config, 10, &events);
    expect![[r#"
        c1
        -c16
        c1
        -c17
        d1
        -c17
        -a1 =b1 =d1"#]]
    .assert_eq(&told[told.len() - 7..].join("\n"));
}

#[test]
fn what_could_never_fit_holds_up_nobody() {
    let config = Config { max_concurrent_queries: 1, max_queued: 100, ..config(&[]) };
    let mut events = "a99".to_owned();
    for small in 1..=PASSES_MAX + 2 {
        let _ = write!(events, " b1 -b{small}");
    }
    events.push_str(" +99 -a1");
    let told = told(&config, 10, &events);
    expect![[r#"
        -b17
        b1 =b18
        -b18
        +99 =a1
        -a1"#]]
    .assert_eq(&told[told.len() - 5..].join("\n"));
}

#[test]
fn who_leaves_lets_the_next_in_but_not_while_paused() {
    check(
        &config(&[]),
        10,
        "a9 b9 b1 -b1 -b2 stop c1 go",
        &expect![[r#"
            a9 =a1
            b9
            b1
            -b1 =b2
            -b2
            stop
            c1
            go =c1"#]],
    );
}
