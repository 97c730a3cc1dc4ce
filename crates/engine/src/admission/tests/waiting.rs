//! How one query waits, runs and leaves.

use expect_test::expect;
use tokio::time::{sleep, timeout};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_permit_knows_its_wait_and_gives_back_all() {
    let admission = admission(&config(&[]));
    let budget = Budget::new(10);
    let a = principal("a");
    let first = admission.enter(&a, Lane::Heavy, budget.take(6)).await.expect("all is free");
    assert_eq!((first.waited(), first.grant().1, budget.free()), (Duration::ZERO, 6, 4));
    let second = tokio::spawn({
        let (admission, take, a) = (Arc::clone(&admission), budget.take(6), a.clone());
        async move { admission.enter(&a, Lane::Heavy, take).await }
    });
    sleep(Duration::from_secs(3)).await;
    let load = Load { running: 1, queued: 1 };
    let snapshot = Snapshot { heavy: load, light: Load::default(), principals: [(a.clone(), load)].into() };
    assert_eq!(admission.snapshot(), snapshot);
    // A light one does not wait for it, and needs no slot of the heavy ones.
    let light = admission.enter(&a, Lane::Light, budget.take(1)).await.expect("a lane of its own");
    assert_eq!(light.waited(), Duration::ZERO);
    drop(first);
    let second = second.await.expect("no panic").expect("the first is gone");
    assert_eq!(second.waited(), Duration::from_secs(3));
    drop((second, light));
    assert_eq!((budget.free(), admission.snapshot()), (10, Snapshot::default()));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_refused_and_told_when_to_retry() {
    let admission = admission(&config(&[]));
    let budget = Budget::new(10);
    let a = principal("a");
    let ran = admission.enter(&a, Lane::Heavy, budget.take(10)).await.expect("all is free");
    sleep(Duration::from_secs(8)).await;
    drop(ran);
    let _all = admission.enter(&a, Lane::Heavy, budget.take(10)).await.expect("all is free");
    let mut waiting = futures::future::join_all((0..4).map(|_| admission.enter(&a, Lane::Heavy, budget.take(1))));
    assert!(futures::poll!(&mut waiting).is_pending());
    let full = admission.enter(&a, Lane::Heavy, budget.take(1)).await.err().expect("the queue is full");
    // Five queries of eight seconds, one at a time, but at most 30 s.
    assert_eq!(full.retry_after(), Some(Duration::from_secs(30)));
    drop(waiting);
    let late = admission.enter(&a, Lane::Heavy, budget.take(1)).await.err().expect("nothing comes free");
    assert_eq!(late.retry_after(), Some(Duration::from_secs(8)));
    expect![[r#"
        the queue is full: 4 queries wait (engine.max_queued = 4); try again in a moment
        the query waited 5m for its turn (engine.queue_timeout), and 0 others still wait; try again later"#]]
    .assert_eq(&format!("{full}\n{late}"));
}

#[tokio::test(start_paused = true)]
async fn freed_memory_and_an_end_of_pause_let_in() {
    let admission = admission(&config(&[]));
    let budget = Budget::new(0);
    let a = principal("a");
    let second = Duration::from_secs(1);
    let mut entering = Box::pin(admission.enter(&a, Lane::Heavy, budget.take(5)));
    assert!(timeout(second, &mut entering).await.is_err());
    drop(Grant(budget.clone(), 5));
    admission.pause(true);
    admission.poke();
    assert!(timeout(second, &mut entering).await.is_err(), "paused");
    admission.pause(false);
    assert_eq!(entering.await.expect("not paused").waited(), 2 * second);
}

#[tokio::test(start_paused = true)]
async fn a_parked_query_lends_its_slot() {
    let admission = admission(&Config { max_concurrent_queries: 1, ..config(&[]) });
    let budget = Budget::new(10);
    let a = principal("a");
    let slow = admission.enter(&a, Lane::Heavy, budget.take(1)).await.expect("a slot is free");
    let parked = slow.park();
    let other = admission.enter(&a, Lane::Heavy, budget.take(1)).await.expect("the slot is lent");
    drop(parked);
    assert_eq!(admission.snapshot().heavy.running, 2, "it goes on at once");
    let mut third = Box::pin(admission.enter(&a, Lane::Heavy, budget.take(1)));
    assert!(timeout(Duration::from_secs(1), &mut third).await.is_err());
    drop(other);
    assert!(timeout(Duration::from_secs(1), &mut third).await.is_err(), "one slot, and it is taken again");
    drop(slow);
    drop(third.await.expect("now it is free"));
    assert_eq!(admission.snapshot(), Snapshot::default());
}

#[tokio::test(start_paused = true)]
async fn a_parked_query_comes_back_when_there_is_what_it_needs() {
    let admission = admission(&config(&[]));
    let budget = Budget::new(10);
    let a = principal("a");
    let first = admission.enter(&a, Lane::Heavy, budget.take(1)).await.expect("all is free");
    let parked = first.park();
    let other = admission.enter(&a, Lane::Heavy, budget.take(9)).await.expect("the rest");
    let mut queued = futures::future::join_all((0..4).map(|_| admission.enter(&a, Lane::Heavy, budget.take(1))));
    assert!(futures::poll!(&mut queued).is_pending());
    {
        let mut resumed = std::pin::pin!(parked.resume(budget.take(5)));
        assert!(timeout(Duration::from_secs(9), &mut resumed).await.is_err(), "it waits, and is not refused");
        drop((other, queued));
        assert!(resumed.await);
    }
    assert_eq!((budget.free(), admission.snapshot().heavy), (9, Load { running: 1, queued: 0 }));
    let parked = first.park();
    let other = admission.enter(&a, Lane::Heavy, budget.take(9)).await.expect("the rest");
    assert!(!parked.resume(budget.take(5)).await, "it has waited as long as one may");
    assert_eq!(admission.snapshot().heavy, Load { running: 2, queued: 0 });
    drop((first, other));
    assert_eq!((budget.free(), admission.snapshot()), (10, Snapshot::default()));
}

#[tokio::test]
async fn a_waiter_dropped_as_it_is_admitted_loses_nothing() {
    let admission = admission(&Config { max_concurrent_queries: 1, ..config(&[]) });
    let budget = Budget::new(1);
    let a = principal("a");
    let first = admission.enter(&a, Lane::Heavy, budget.take(1)).await.expect("all is free");
    let mut second = Box::pin(admission.enter(&a, Lane::Heavy, budget.take(1)));
    let mut third = Box::pin(admission.enter(&a, Lane::Heavy, budget.take(1)));
    assert!(futures::poll!(&mut second).is_pending());
    assert!(futures::poll!(&mut third).is_pending());
    drop(first);
    assert_eq!(admission.snapshot().heavy, Load { running: 1, queued: 1 }, "the second is admitted, unknowingly");
    drop(second);
    drop(third.await.expect("the permit went on"));
    assert_eq!((budget.free(), admission.snapshot()), (1, Snapshot::default()));
}
