//! A request's head: from bytes to what the rest needs (RFC 9112).

use pindah_vmm_api::{ErrorCode, ErrorInfo};

use super::{Limits, refuse};

/// Headers in one request. curl sends three.
const MAX_HEADERS: usize = 32;

/// Request line and headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    /// Length of the body that follows.
    pub(super) content_length: usize,
    pub(super) is_json: bool,
    /// The connection stays open after the answer.
    pub(super) keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
    /// The protocol that the client wants to go on in, in lower case.
    pub(super) upgrade: Option<String>,
}

/// Parses the head at the start of `input`. Returns it and its length, or `None` as long as it is
/// incomplete.
///
/// # Errors
/// What the client is told before the connection is closed: where the next request would start
/// is not known.
pub(super) fn parse(input: &[u8], limits: &Limits) -> Result<Option<(Head, usize)>, ErrorInfo> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let considered = &input[..input.len().min(limits.header_bytes)];
    let too_large = |what| refuse(ErrorCode::HeaderTooLarge, what);
    let length = match request.parse(considered) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() < limits.header_bytes => return Ok(None),
        Ok(httparse::Status::Partial) => {
            let most = limits.header_bytes;
            return Err(too_large(format!("the header is longer than {most} bytes")));
        }
        Err(httparse::Error::TooManyHeaders) => {
            return Err(too_large(format!(
                "there are more than {MAX_HEADERS} headers"
            )));
        }
        Err(error) => {
            return Err(refuse(
                ErrorCode::BadRequest,
                format!("this is not HTTP/1.1: {error}"),
            ));
        }
    };
    Ok(Some((head(&request, limits)?, length)))
}

fn head(request: &httparse::Request<'_, '_>, limits: &Limits) -> Result<Head, ErrorInfo> {
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        content_length: 0,
        is_json: false,
        keep_alive: request.version == Some(1),
        expects_continue: false,
        upgrade: None,
    };
    let mut content_length = None;
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let length = parse_length(value, limits)?;
                if content_length.is_some_and(|earlier| earlier != length) {
                    return Err(refuse(
                        ErrorCode::BadRequest,
                        "two Content-Length headers disagree",
                    ));
                }
                content_length = Some(length);
            }
            "transfer-encoding" => {
                return Err(refuse(
                    ErrorCode::LengthRequired,
                    "a body needs Content-Length; Transfer-Encoding is not taken",
                ));
            }
            "content-type" => head.is_json = is_json(value),
            "connection" => {
                for option in value.split(',').map(str::trim) {
                    if option.eq_ignore_ascii_case("close") {
                        head.keep_alive = false;
                    }
                }
            }
            "upgrade" => head.upgrade = Some(value.to_ascii_lowercase()),
            "expect" if value.eq_ignore_ascii_case("100-continue") => head.expects_continue = true,
            "expect" => {
                return Err(refuse(
                    ErrorCode::ExpectationFailed,
                    "only Expect: 100-continue can be met",
                ));
            }
            _ => {}
        }
    }
    head.content_length = content_length.unwrap_or(0);
    Ok(head)
}

fn parse_length(value: &str, limits: &Limits) -> Result<usize, ErrorInfo> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return Err(refuse(
            ErrorCode::BadRequest,
            format!("Content-Length {value:?} is not a number"),
        ));
    }
    // A number that does not fit is a number that is too large.
    let length = value.parse().unwrap_or(usize::MAX);
    if length > limits.body_bytes {
        let most = limits.body_bytes;
        return Err(refuse(
            ErrorCode::BodyTooLarge,
            format!("the body is longer than {most} bytes"),
        ));
    }
    Ok(length)
}

fn is_json(value: &str) -> bool {
    let media_type = value.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<Option<(Head, usize)>, ErrorCode> {
        parse(text.as_bytes(), &Limits::default()).map_err(|error| error.code)
    }

    #[test]
    fn head_as_curl_sends_it_is_understood() {
        let text = "POST /api/v1/x?a=b HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\
            content-type: application/json; charset=utf-8\r\nContent-Length: 7\r\n\
            Expect: 100-continue\r\n\r\n{\"a\":1}";
        let (head, length) = parsed(text).unwrap().unwrap();
        assert_eq!(&text[length..], "{\"a\":1}");
        assert_eq!(
            (
                head.method.as_str(),
                head.path.as_str(),
                head.query.as_str()
            ),
            ("POST", "/api/v1/x", "a=b")
        );
        assert_eq!(head.content_length, 7);
        assert!(head.is_json && head.keep_alive && head.expects_continue);
    }

    #[test]
    fn head_that_cannot_be_framed_is_refused() {
        for (headers, code) in [
            ("Content-Length: x", ErrorCode::BadRequest),
            ("Content-Length: -1", ErrorCode::BadRequest),
            ("Content-Length: +1", ErrorCode::BadRequest),
            ("Content-Length:", ErrorCode::BadRequest),
            (
                "Content-Length: 1\r\nContent-Length: 2",
                ErrorCode::BadRequest,
            ),
            ("Content-Length: 65537", ErrorCode::BodyTooLarge),
            (
                "Content-Length: 99999999999999999999999",
                ErrorCode::BodyTooLarge,
            ),
            ("Transfer-Encoding: chunked", ErrorCode::LengthRequired),
            ("Expect: the-unexpected", ErrorCode::ExpectationFailed),
            ("no colon", ErrorCode::BadRequest),
        ] {
            let text = format!("PUT / HTTP/1.1\r\n{headers}\r\n\r\n");
            assert_eq!(parsed(&text), Err(code), "{headers}");
        }
    }

    #[test]
    fn header_at_the_limit_is_taken_and_beyond_is_refused() {
        let limits = Limits::default();
        let fixed = "GET / HTTP/1.1\r\nX: \r\n\r\n".len();
        let exact = "a".repeat(limits.header_bytes - fixed);
        let text = format!("GET / HTTP/1.1\r\nX: {exact}\r\n\r\n");
        assert_eq!(text.len(), limits.header_bytes);
        assert!(parsed(&text).unwrap().is_some());
        let text = format!("GET / HTTP/1.1\r\nX: {exact}a\r\n\r\n");
        assert_eq!(parsed(&text), Err(ErrorCode::HeaderTooLarge));
        let many = "A: b\r\n".repeat(MAX_HEADERS + 1);
        let text = format!("GET / HTTP/1.1\r\n{many}\r\n");
        assert_eq!(parsed(&text), Err(ErrorCode::HeaderTooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_incomplete_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let _ = parse(&bytes, &Limits::default());
        }

        #[test]
        fn any_prefix_of_a_good_head_is_incomplete(cut in 0_usize..48) {
            let text = "PUT /api/v1/balloon HTTP/1.1\r\nContent-Length: 3\r\n\r\n";
            prop_assume!(cut < text.len());
            prop_assert_eq!(parsed(&text[..cut]), Ok(None));
        }

        #[test]
        fn any_headers_never_give_a_body_beyond_the_limit(
            name in "(Content-Length|Expect|Connection|Transfer-Encoding|X)", value in "[ -~]{0,24}",
        ) {
            let text = format!("PUT / HTTP/1.1\r\n{name}: {value}\r\n\r\n");
            if let Ok(Some((head, length))) = parsed(&text) {
                prop_assert!(head.content_length <= Limits::default().body_bytes);
                prop_assert_eq!(length, text.len());
            }
        }
    }
}
