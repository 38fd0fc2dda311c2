//! Lists of names in messages.

/// Most names that a message repeats.
const MOST: usize = 6;

/// All names, or the first of many and how many more there are.
pub fn some_of<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(MOST).map(AsRef::as_ref).collect();
    let shown = shown.join(", ");
    match names.len().checked_sub(MOST) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_are_cut_short_and_counted() {
        assert_eq!(some_of::<&str>(&[]), "");
        assert_eq!(some_of(&["a"; MOST]), "a, a, a, a, a, a");
        assert_eq!(some_of(&["a"; MOST + 2]), "a, a, a, a, a, a and 2 more");
    }
}
