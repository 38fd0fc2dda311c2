use proptest::prelude::*;

use super::*;

fn node(name: &str) -> NodeLoad {
    NodeLoad {
        name: name.to_owned(),
        memory_mib: 8000,
        cpus: 4,
    }
}

fn guest(name: &str, node: &str, memory_mib: u64, cpu_percent: f64) -> GuestLoad {
    GuestLoad {
        uuid: Uuid::from_u128(
            name.bytes()
                .fold(0, |sum, byte| sum << 8 | u128::from(byte)),
        ),
        name: name.to_owned(),
        node: node.to_owned(),
        promised_mib: memory_mib + 8,
        resident_mib: memory_mib,
        cpu_percent,
        movable: true,
    }
}

fn moves(nodes: &[NodeLoad], guests: &[GuestLoad]) -> Vec<String> {
    let (moves, _) = balance(nodes, guests, |_, _| true);
    let text = |one: &Suggestion| format!("{} {} {}", one.guest, one.from, one.to);
    moves.iter().map(text).collect()
}

#[test]
fn full_node_gives_the_guest_that_evens_out_most() {
    let nodes = [node("node1"), node("node2")];
    let guests = [
        guest("db", "node1", 4000, 20.0),
        guest("web", "node1", 2000, 20.0),
        guest("dns", "node1", 100, 20.0),
    ];
    let (moves, of_nodes) = balance(&nodes, &guests, |_, _| true);
    assert_eq!(moves.len(), 1, "{moves:?}");
    assert_eq!(
        (moves[0].guest.as_str(), moves[0].to.as_str()),
        ("db", "node2")
    );
    assert_eq!(
        moves[0].reason,
        "memory 76.3 % → 26.3 % on node1, 0 % → 50 % on node2; CPU 15 % → 10 % on node1, \
         0 % → 5 % on node2"
    );
    assert!(
        (of_nodes[1].then.memory - 50.0).abs() < 1e-9,
        "{of_nodes:?}"
    );
}

#[test]
fn busy_node_gives_a_guest_when_memory_is_about_even() {
    let nodes = [node("node1"), node("node2")];
    let guests = [
        guest("calm", "node2", 2000, 1.0),
        guest("busy", "node1", 500, 180.0),
        guest("also", "node1", 500, 180.0),
        guest("old", "node1", 2000, 1.0),
    ];
    assert_eq!(moves(&nodes, &guests), ["also node1 node2"]);
}

#[test]
fn little_is_left_as_it_is() {
    let nodes = [node("node1"), node("node2")];
    let one = guest("one", "node1", 800, 40.0);
    let two = guest("two", "node1", 200, 10.0);
    assert!(moves(&nodes, &[one, two]).is_empty());
    assert!(moves(&[], &[]).is_empty());
    let alone = [guest("big", "node1", 7000, 300.0)];
    assert!(moves(&nodes[..1], &alone).is_empty());
}

#[test]
fn what_may_not_move_or_does_not_fit_stays() {
    let nodes = [node("node1"), node("node2")];
    let mut all = [
        guest("db", "node1", 4000, 20.0),
        guest("web", "node1", 2000, 20.0),
    ];
    let uuid = all[0].uuid;
    let (but_db, _) = balance(&nodes, &all, |one, _| one != uuid);
    assert_eq!(but_db[0].guest, "web");
    all[0].movable = false;
    assert_eq!(moves(&nodes, &all), ["web node1 node2"]);
    // It was promised more than it holds.
    all[1].promised_mib = 8001;
    assert!(moves(&nodes, &all).is_empty());
    // Nobody knows of a node of this name.
    all[1].node = "node9".to_owned();
    assert!(moves(&nodes, &all).is_empty());
}

fn loads() -> impl Strategy<Value = (Vec<NodeLoad>, Vec<GuestLoad>)> {
    let nodes = prop::collection::vec((1000u64..64_000, 1usize..33), 1..6);
    let guests = prop::collection::vec(
        (
            0usize..6,
            1u64..16_000,
            0u64..=100,
            0.0f64..1600.0,
            any::<bool>(),
        ),
        0..24,
    );
    (nodes, guests).prop_map(|(nodes, guests)| {
        let nodes: Vec<_> = nodes
            .into_iter()
            .enumerate()
            .map(|(number, (memory_mib, cpus))| NodeLoad {
                name: format!("node{number}"),
                memory_mib,
                cpus,
            })
            .collect();
        let guests = guests.into_iter().enumerate();
        let guests =
            guests.map(
                |(number, (at, promised_mib, held, cpu_percent, movable))| GuestLoad {
                    promised_mib,
                    resident_mib: promised_mib * held / 100,
                    movable,
                    ..guest(
                        &format!("guest{number}"),
                        &format!("node{}", at % nodes.len()),
                        0,
                        cpu_percent,
                    )
                },
            );
        let guests = guests.collect();
        (nodes, guests)
    })
}

/// Fullest and busiest node, and the load of all.
fn measure(nodes: &[NodeLoad], guests: &[GuestLoad]) -> (f64, f64, f64) {
    let shares = Places::new(nodes, guests).shares();
    let most = |of: fn(&Share) -> f64| shares.iter().map(of).fold(0.0, f64::max);
    let load = shares.iter().map(|share| share.load()).sum();
    (most(|share| share.memory), most(|share| share.cpu), load)
}

proptest! {
    #[test]
    fn no_move_makes_the_worst_node_worse_and_they_come_to_an_end(
        (nodes, mut guests) in loads()
    ) {
        for _ in 0..1000 {
            let (moves, _) = balance(&nodes, &guests, |_, _| true);
            let mut turned = guests.clone();
            turned.reverse();
            let (again, _) = balance(&nodes, &turned, |_, _| true);
            prop_assert_eq!(&again, &moves);
            if moves.is_empty() {
                return Ok(());
            }
            for one in moves {
                let (full, busy, load) = measure(&nodes, &guests);
                let moved = guests.iter_mut().find(|guest| guest.uuid == one.uuid);
                let moved = moved.unwrap();
                prop_assert!(moved.movable && moved.node == one.from);
                moved.node = one.to.clone();
                let promised = guests.iter().filter(|guest| guest.node == one.to);
                let promised: u64 = promised.map(|guest| guest.promised_mib).sum();
                let to = nodes.iter().find(|node| node.name == one.to).unwrap();
                prop_assert!(promised <= to.memory_mib);
                let (fuller, busier, lower) = measure(&nodes, &guests);
                let rounding = 1e-9;
                prop_assert!(fuller <= full + rounding);
                prop_assert!(busier <= busy.max(CALM) + rounding);
                prop_assert!(lower <= load - WORTHWHILE + rounding);
            }
        }
        prop_assert!(false, "it goes on for ever");
    }
}
