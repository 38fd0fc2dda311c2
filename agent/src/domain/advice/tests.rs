use super::*;

fn figures(average: f64, p95: f64, maximum: f64) -> Figures {
    Figures {
        average,
        p95,
        maximum,
    }
}

fn guest(name: &str, node: &str, memory_mib: u64) -> GuestUse {
    GuestUse {
        name: name.to_owned(),
        node: node.to_owned(),
        runs: true,
        bound: false,
        cpus: 2,
        memory_mib,
        promised_mib: memory_mib + 8,
        tells_memory: true,
        measured_s: 15 * 86_400,
        cpu_percent: Some(figures(10.0, 30.0, 100.0)),
        memory_percent: Some(figures(50.0, 60.0, 70.0)),
    }
}

fn node(name: &str, memory_mib: u64) -> NodeUse {
    NodeUse {
        name: name.to_owned(),
        takes_guests: true,
        memory_mib,
        cpus: 4,
        cpu_percent: Some(figures(5.0, 20.0, 60.0)),
    }
}

fn sizes(guest: GuestUse) -> Vec<(Resource, u64)> {
    let advice = advise(&[], &[guest]);
    let sizes = advice.sizes.into_iter();
    sizes.map(|size| (size.resource, size.better)).collect()
}

#[test]
fn guest_that_is_well_is_left_alone() {
    assert!(sizes(guest("web", "a", 1024)).is_empty());
}

#[test]
fn memory_that_is_always_full_is_too_little_if_the_guest_says_so() {
    let mut full = guest("web", "a", 1024);
    full.memory_percent = Some(figures(92.0, 95.0, 99.0));
    assert_eq!(sizes(full.clone()), [(Resource::Memory, 1344)]);
    let advice = advise(&[], &[full.clone()]).sizes.remove(0);
    assert_eq!(advice.command, "pindah guest edit web --memory 1344M");
    assert!(advice.reason.contains("95 %"), "{advice:?}");
    // A process that holds all of its memory may have a guest that needs little.
    full.tells_memory = false;
    assert!(sizes(full).is_empty());
}

#[test]
fn memory_that_was_never_used_is_too_much() {
    let mut idle = guest("web", "a", 4096);
    idle.memory_percent = Some(figures(10.0, 15.0, 30.0));
    assert_eq!(sizes(idle.clone()), [(Resource::Memory, 1664)]);
    // Not worth a restart.
    idle.memory_mib = 64;
    assert!(sizes(idle).is_empty());
}

#[test]
fn cpus_follow_what_is_used_of_them() {
    let mut busy = guest("web", "a", 1024);
    busy.cpu_percent = Some(figures(80.0, 99.0, 100.0));
    assert_eq!(sizes(busy.clone()), [(Resource::Cpus, 4)]);
    busy.cpus = 8;
    busy.cpu_percent = Some(figures(2.0, 5.0, 10.0));
    assert_eq!(sizes(busy.clone()), [(Resource::Cpus, 2)]);
    busy.cpus = 1;
    assert!(sizes(busy).is_empty());
}

#[test]
fn nothing_is_said_of_the_size_of_a_guest_that_is_hardly_known() {
    let mut new = guest("web", "a", 4096);
    new.memory_percent = Some(figures(1.0, 1.0, 1.0));
    new.measured_s = 3600;
    let advice = advise(&[], &[new]);
    assert!(advice.sizes.is_empty());
    assert_eq!(advice.measured_too_short, ["web"]);
}

#[test]
fn guests_of_a_dead_node_go_where_most_is_free() {
    let nodes = [node("a", 4096), node("b", 4096), node("c", 2048)];
    let guests = [
        guest("big", "a", 2000),
        guest("small", "a", 1000),
        guest("other", "b", 1500),
    ];
    let advice = advise(&nodes, &guests);
    let loss = &advice.losses[0];
    assert_eq!((loss.node.as_str(), loss.fits), ("a", true));
    let moved: Vec<_> = loss
        .moved
        .iter()
        .map(|one| (&*one.guest, &*one.node))
        .collect();
    assert_eq!(moved, [("big", "b"), ("small", "c")]);
    assert_eq!(
        loss.summary,
        "2 guests need 3016 MiB, the others have 4636 MiB free: all fit"
    );
    // 30 % of two CPUs beside 20 % of four.
    assert!((loss.nodes[0].cpu_percent - 35.0).abs() < 0.001, "{loss:?}");
    assert_eq!(advice.losses.len(), 2, "c runs none");
}

#[test]
fn guests_that_do_not_fit_or_are_bound_are_named() {
    let mut drained = node("c", 8192);
    drained.takes_guests = false;
    let nodes = [node("a", 4096), node("b", 2048), drained];
    let mut bound = guest("db", "a", 512);
    bound.bound = true;
    let mut off = guest("off", "a", 9000);
    off.runs = false;
    let guests = [guest("big", "a", 3000), guest("web", "a", 1024), bound, off];
    let loss = advise(&nodes, &guests).losses.remove(0);
    assert!(!loss.fits);
    assert_eq!(loss.without_room, ["big"]);
    assert_eq!(loss.bound, ["db"]);
    assert_eq!(
        loss.summary,
        "2 guests need 4040 MiB, the others have 2048 MiB free: no room for big; \
         1 guest must wait for it, as only it has what they need: db"
    );
}

#[test]
fn new_guest_goes_where_memory_is_free_then_where_it_is_calm() {
    let mut busy = node("b", 4096);
    busy.cpu_percent = Some(figures(50.0, 90.0, 100.0));
    let mut full = node("d", 1008);
    full.cpu_percent = None;
    let nodes = [node("a", 4096), busy, node("c", 4096), full];
    let guests = [guest("web", "a", 2040), guest("db", "d", 1000)];
    let places = advise(&nodes, &guests).places;
    let names: Vec<_> = places.iter().map(|place| &*place.node).collect();
    assert_eq!(names, ["c", "b", "a"]);
    assert_eq!(places[2].free_mib, 2048);
}
