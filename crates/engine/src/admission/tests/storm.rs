//! Many queries at once: all end, nothing is lost, and everyone gets a share.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

use tokio::time::{sleep, timeout};

use super::*;

#[tokio::test(start_paused = true)]
async fn one_who_floods_leaves_the_others_their_share() {
    const SLOTS: usize = 4;
    const OTHERS: usize = 10;
    let config = Config { max_concurrent_queries: SLOTS, max_queued: 64, ..config(&[]) };
    let admission = admission(&config);
    let budget = Budget::new(1000);
    let run = Duration::from_millis(100);
    let query = move |name: String| {
        let (admission, take) = (Arc::clone(&admission), budget.take(1));
        async move {
            let permit = admission.enter(&principal(&name), Lane::Heavy, take).await?;
            sleep(run).await;
            drop(permit);
            Ok::<_, Error>(())
        }
    };
    let flood: Vec<_> = (0..100)
        .map(|_| {
            let query = query.clone();
            tokio::spawn(async move {
                loop {
                    if query("flood".to_owned()).await.is_err() {
                        sleep(Duration::from_millis(10)).await;
                    }
                }
            })
        })
        .collect();
    sleep(run).await;
    let until = Instant::now() + Duration::from_secs(12);
    let others = (0..OTHERS).map(|other| {
        let query = query.clone();
        async move {
            let mut ran = 0;
            while Instant::now() < until {
                query(format!("p{other}")).await.expect("who waits with one query is not refused");
                ran += 1;
            }
            ran
        }
    });
    let ran = futures::future::join_all(others).await;
    flood.iter().for_each(|task| task.abort());
    let fair = SLOTS * 120 / (OTHERS + 1);
    assert!(ran.iter().all(|ran| ran * 10 >= fair * 8), "a fair share is {fair} runs each: {ran:?}");
}

/// A generator of numbers that repeats by seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// How the queries of a storm ended.
#[derive(Debug, Default)]
struct Ends {
    admitted: AtomicUsize,
    full: AtomicUsize,
    late: AtomicUsize,
    left: AtomicUsize,
}

/// Many queries of random principals, sizes, patience and length; every one ends, and all is given back.
async fn storm(seed: u64, queries: usize) -> Arc<Ends> {
    let own = PrincipalConfig { max_concurrent_queries: Some(2), max_queued: Some(8), ..PrincipalConfig::default() };
    let config = Config {
        max_concurrent_queries: 4,
        max_light_queries: 2,
        max_queued: 16,
        queue_timeout: Duration::from_millis(40),
        ..config(&[("p0", own), ("p1", PrincipalConfig { priority: Some(100), ..PrincipalConfig::default() })])
    };
    let admission = admission(&config);
    let budget = Budget::new(100);
    let (ends, running) = (Arc::new(Ends::default()), Arc::new(Mutex::new(HashMap::new())));
    let mut random = Random(seed);
    let mut tasks = Vec::new();
    for _ in 0..queries {
        let name = format!("p{}", random.below(4));
        let lane = if random.below(3) == 0 { Lane::Light } else { Lane::Heavy };
        // Light ones take little, heavy ones up to all.
        let take = budget.take(if lane == Lane::Light { 1 } else { random.below(100) as i64 + 1 });
        let [start, patience, length] = [200, 60, 10].map(|bound| Duration::from_millis(random.below(bound)));
        let (admission, ends, running) = (Arc::clone(&admission), Arc::clone(&ends), Arc::clone(&running));
        tasks.push(tokio::spawn(async move {
            sleep(start).await;
            let who = principal(&name);
            let entered = admission.enter(&who, lane, take);
            match timeout(patience, entered).await {
                Ok(Ok(permit)) => {
                    ends.admitted.fetch_add(1, Ordering::SeqCst);
                    let place = |delta: isize| {
                        let mut running = running.lock();
                        let mut add = |key: &str| {
                            let count = running.entry((lane == Lane::Heavy, key.to_owned())).or_insert(0_isize);
                            *count += delta;
                            *count
                        };
                        (add(&name), add("all"))
                    };
                    let (own, all) = place(1);
                    let slots = if lane == Lane::Heavy { 4 } else { 2 };
                    assert!(
                        all <= slots && (lane == Lane::Light || name != "p0" || own <= 2),
                        "{lane:?}: {all} run, {own} of {name}"
                    );
                    sleep(length).await;
                    place(-1);
                    drop(permit);
                }
                Ok(Err(Error::QueueFull { .. })) => drop(ends.full.fetch_add(1, Ordering::SeqCst)),
                Ok(Err(Error::QueueTimeout { .. })) => drop(ends.late.fetch_add(1, Ordering::SeqCst)),
                Ok(Err(other)) => panic!("{other}"),
                Err(_) => drop(ends.left.fetch_add(1, Ordering::SeqCst)),
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let ended = [&ends.admitted, &ends.full, &ends.late, &ends.left].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(ended.iter().sum::<usize>(), queries, "seed {seed}: {ends:?}");
    assert_eq!((budget.free(), admission.snapshot()), (100, Snapshot::default()), "seed {seed}");
    ends
}

#[tokio::test(start_paused = true)]
async fn every_query_of_a_storm_ends_and_nothing_is_lost() {
    for seed in 0..40 {
        let ends = storm(seed, 300).await;
        for (what, count) in
            [("admitted", &ends.admitted), ("full", &ends.full), ("late", &ends.late), ("left", &ends.left)]
        {
            assert!(count.load(Ordering::SeqCst) > 0, "seed {seed} shows no {what}: {ends:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_on_several_threads_loses_nothing() {
    for seed in 0..4 {
        storm(seed, 1000).await;
    }
}
