use super::*;

const LOGIN: &str = "[root]\npassword = 'long enough'\n";

fn parse(text: &str) -> Result<Answers, Vec<Mistake>> {
    Answers::parse(text, Path::new("/nonexistent"))
}

#[test]
fn example_says_everything_and_is_valid() {
    let answers = parse(include_str!("../../answers.toml")).unwrap();
    assert_eq!(answers.host_name, "node1");
    assert_eq!(answers.time_zone, "Asia/Jakarta");
    assert_eq!(answers.disk.pick, Some(Pick::Smallest));
    assert_eq!(answers.disk.min_bytes, Some(100 << 30));
    assert_eq!(answers.network.vlan, Some(20));
    assert_eq!(answers.own_address(), Some([192, 168, 0, 11].into()));
    assert_eq!(answers.root.ssh_keys.len(), 1);
    assert!(matches!(
        answers.cluster,
        Cluster::Join { witness: false, .. }
    ));
}

#[test]
fn example_without_comments_is_valid_too() {
    // What is commented out there can be said as well, one line at a time.
    let example = include_str!("../../answers.toml");
    let settings = example.lines().filter_map(|line| line.strip_prefix("# "));
    let settings: Vec<&str> = settings.filter(|line| line.contains(" = ")).collect();
    assert!(settings.len() > 4, "{settings:?}");
    for setting in settings {
        let text = example.replace(&format!("# {setting}"), setting);
        let other = text.replace("password_hash = ", "# password_hash = ");
        let text = if setting.starts_with("password = ") {
            other
        } else {
            text
        };
        assert!(parse(&text).is_ok(), "{setting}: {:?}", parse(&text));
    }
}

#[test]
fn little_is_enough() {
    let answers = parse("host_name = 'a'\nroot.password = 'long enough'").unwrap();
    assert_eq!(answers.network, Network::default());
    assert_eq!(answers.disk, DiskWish::default());
    assert_eq!(answers.time_zone, "UTC");
    assert_eq!(
        (answers.cluster, answers.end),
        (Cluster::Single, End::Reboot)
    );
    let hash = answers.root.password_hash.unwrap();
    // crypt(5) takes no longer salt, and its answer to one is another hash.
    let [_, "6", _, salt, _] = hash.split('$').collect::<Vec<_>>()[..] else {
        panic!("{hash}");
    };
    assert_eq!(salt.len(), 16, "{hash}");
}

#[test]
fn secrets_are_not_shown() {
    let answers = parse(include_str!("../../answers.toml")).unwrap();
    let shown = format!("{answers:?}");
    assert!(
        !shown.contains("$6$") && !shown.contains("pindah-join"),
        "{shown}"
    );
}

/// `text` after a valid head gives, at `line`:`column` of the whole, something with `message`.
#[track_caller]
fn refused(text: &str, line: usize, column: usize, message: &str) {
    let mistakes = parse(text).unwrap_err();
    let found = mistakes.iter().any(|mistake| {
        (mistake.line, mistake.column) == (line, column) && mistake.message.contains(message)
    });
    assert!(found, "{text}\n  gives {mistakes:?}");
    for mistake in mistakes {
        assert!(!mistake.message.contains('\n'), "{mistake}");
    }
}

#[test]
fn text_that_is_not_toml_is_refused_where_it_breaks() {
    for (text, line, column, message) in [
        ("host_name = node1", 1, 13, "this is not TOML"),
        ("host_name 'node1'", 1, 11, "this is not TOML"),
        (
            "host_name = 'a'\n[disk\nerase = true",
            2,
            6,
            "this is not TOML",
        ),
        ("host_name = 'a", 1, 15, "this is not TOML"),
        ("host_name = 'a'\nhost_name = 'b'", 2, 1, "said twice"),
        ("\u{e9} = 1\nhost_name = 'a'", 1, 1, "this is not TOML"),
    ] {
        refused(text, line, column, message);
    }
}

#[test]
fn fields_and_kinds_that_are_wrong_are_refused() {
    for (text, line, column, message) in [
        (
            "hostname = 'a'",
            1,
            1,
            "there is no `hostname` here: write one of `host_name`",
        ),
        ("host_name = 5", 1, 13, "write text, in quotes"),
        ("[disk]\nsize = '5G'", 2, 1, "there is no `size` here"),
        ("[disk]\nerase = 'yes'", 2, 9, "write true or false"),
        ("[network]\nvlan = '20'", 2, 8, "write a whole number"),
        ("[network]\ndns = '10.0.0.1'", 2, 7, "write a list, in [ ]"),
        (
            "[root]\nssh_keys = ['x', 5]",
            2,
            18,
            "write text, in quotes",
        ),
        ("[cluster]\nkind = 'new'", 2, 1, "there is no `kind` here"),
        ("network = 'dhcp'", 1, 11, "write a table"),
    ] {
        refused(text, line, column, message);
    }
}

#[test]
fn values_that_cannot_be_are_refused() {
    for (text, line, column, message) in [
        ("host_name = 'Node_1'", 1, 13, "lower-case letters"),
        ("host_name = 'localhost'", 1, 13, "not \"localhost\""),
        ("host_name = ''", 1, 13, "1 to 63"),
        ("time_zone = '../etc/passwd'", 1, 13, "no such zone"),
        ("end = 'halt'", 1, 7, "\"power-off\""),
        ("[disk]\npath = 'sda'", 2, 8, "below /dev"),
        ("[disk]\npath = '/dev/../etc'", 2, 8, "below /dev"),
        ("[disk]\nserial = ' '", 2, 10, "is empty"),
        ("[disk]\nmin_size = '100'", 2, 12, "M, G or T"),
        ("[disk]\nmin_size = '0G'", 2, 12, "M, G or T"),
        ("[disk]\nmin_size = '99999999999T'", 2, 12, "M, G or T"),
        (
            "[disk]\nmin_size = '2T'\nmax_size = '1T'",
            3,
            12,
            "no disk fits",
        ),
        (
            "[disk]\npick = 'first'",
            2,
            8,
            "\"smallest\" or \"largest\"",
        ),
        ("[network]\nnic = 'a/b'", 2, 7, "interface's name"),
        ("[network]\nmac = '00:11:22:33:44'", 2, 7, "six pairs"),
        ("[network]\nvlan = 4095", 2, 8, "1 to 4094"),
        (
            "[network]\naddress = '192.168.0.11'",
            2,
            11,
            "length of its network's prefix",
        ),
        (
            "[network]\naddress = '192.168.0.300/24'",
            2,
            11,
            "as \"192.168.0.11/24\"",
        ),
        (
            "[network]\naddress = '192.168.0.0/24'",
            2,
            11,
            "of the whole network",
        ),
        (
            "[network]\naddress = '192.168.0.255/24'",
            2,
            11,
            "of all machines",
        ),
        ("[network]\naddress = '192.168.0.1/33'", 2, 11, "prefix"),
        (
            "[network]\naddress = '127.0.0.1/8'",
            2,
            11,
            "a machine's address",
        ),
        (
            "[network]\ngateway = '10.0.0.1'",
            2,
            11,
            "without network.address",
        ),
        (
            "[network]\naddress = '10.0.0.2/24'\ngateway = '10.0.1.1'",
            3,
            11,
            "not in the network",
        ),
        (
            "[network]\naddress = '10.0.0.2/24'\ngateway = '10.0.0.2'",
            3,
            11,
            "own address",
        ),
        (
            "[network]\naddress = '10.0.0.2/24'\ngateway = 'fe80::1'",
            3,
            11,
            "not in the network",
        ),
        (
            "[network]\ndns = ['10.0.0.1', 'google']",
            2,
            20,
            "IP address",
        ),
        ("[root]\npassword = 'short'", 2, 12, "at least 8"),
        ("[root]\npassword_hash = 'secret'", 2, 17, "mkpasswd"),
        (
            "[root]\npassword_hash = '$1$abcdefgh$abcdefghijklmnopqrstuv'",
            2,
            17,
            "mkpasswd",
        ),
        (
            "[root]\npassword = 'long enough'\npassword_hash = ''",
            2,
            12,
            "leave one of them out",
        ),
        (
            "[root]\nssh_keys = ['id_ed25519.pub']",
            2,
            13,
            "no public key",
        ),
        (
            "[root]\nssh_keys = ['-----BEGIN OPENSSH PRIVATE KEY-----']",
            2,
            13,
            "private key",
        ),
        ("[cluster]", 1, 1, "cluster.mode is missing"),
        ("[cluster]\nmode = 'old'", 2, 8, "\"new\" or \"join\""),
        (
            "[cluster]\nmode = 'join'\ntoken = 'x'",
            2,
            8,
            "cluster.address is missing",
        ),
        (
            "[cluster]\nmode = 'join'\naddress = 'a'",
            2,
            8,
            "cluster.token is missing",
        ),
        (
            "[cluster]\nmode = 'join'\ntoken = 'abc'",
            3,
            9,
            "no join token",
        ),
        (
            "[cluster]\nmode = 'join'\naddress = '-x y'",
            3,
            11,
            "a node's address",
        ),
        (
            "[cluster]\nmode = 'new'\ntoken = 'abc'",
            3,
            9,
            "leave it out",
        ),
        (
            "[cluster]\nmode = 'new'\nwitness = true",
            2,
            8,
            "leave it out",
        ),
    ] {
        refused(text, line, column, message);
    }
}

#[test]
fn what_is_missing_is_named() {
    refused("", 1, 1, "host_name is missing");
    refused("host_name = 'a'\n\n", 1, 16, "nobody could log in");
}

#[test]
fn all_mistakes_are_told_at_once_in_the_files_order() {
    let text = format!("end = 'x'\nhost_name = 'A'\n{LOGIN}[network]\nvlan = 0");
    let lines: Vec<usize> = parse(&text).unwrap_err().iter().map(|it| it.line).collect();
    assert_eq!(lines, [1, 2, 6]);
    let text = list(&"node.toml", &parse(&text).unwrap_err());
    assert!(text.starts_with("node.toml:1:7: end = \"x\""), "{text}");
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn time_zones_are_looked_up_where_there_are_some() {
    let zones = tempfile::tempdir().unwrap();
    let text = |zone: &str| format!("host_name = 'a'\ntime_zone = '{zone}'\n{LOGIN}");
    assert!(Answers::parse(&text("Asia/Atlantis"), zones.path()).is_ok());
    std::fs::create_dir(zones.path().join("Asia")).unwrap();
    for zone in ["UTC", "Asia/Jakarta"] {
        std::fs::write(zones.path().join(zone), "TZif").unwrap();
    }
    assert!(Answers::parse(&text("Asia/Jakarta"), zones.path()).is_ok());
    for wrong in ["Asia/Atlantis", "Asia", "Asia/", "asia/Jakarta"] {
        assert!(
            Answers::parse(&text(wrong), zones.path()).is_err(),
            "{wrong}"
        );
    }
}
