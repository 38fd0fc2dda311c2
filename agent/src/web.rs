//! Serves the web page, which `build.rs` has built and is embedded here.
//!
//! All that is not under `/api/` or `/metrics` is the page's. Its files have their contents' hash
//! in their names and may be kept for ever; `index.html`, which names them, is asked for again each
//! time, and is what each of the page's own addresses gets.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use include_dir::{Dir, File, include_dir};
use ring::digest::{SHA256, digest};

use crate::security::hex;

static PAGE: Dir<'static> = include_dir!("$OUT_DIR/page");

const INDEX: &str = "index.html";
/// What is under it never changes.
const HASHED: &str = "assets/";
/// The page runs its own scripts and styles, talks to its own server, and is in nobody's frame
/// (Content Security Policy Level 3).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";
const HEADERS: [(HeaderName, &str); 3] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
];
/// Compressed forms, the best first: the name in `Accept-Encoding`, and how the files' names end.
const ENCODINGS: [(&str, &str); 2] = [("br", ".br"), ("gzip", ".gz")];

/// Answers what is asked of the page, and passes on the rest.
pub(crate) async fn serve(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path.starts_with("/api/") || path == "/api" || path == "/metrics" {
        return with_headers(next.run(request).await);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let name = path.trim_start_matches('/');
    if !name.is_empty() && PAGE.get_file(name).is_some() {
        return file(name, request.headers());
    }
    if name.is_empty() || wants_html(request.headers()) {
        return file(INDEX, request.headers());
    }
    next.run(request).await
}

/// An answer of the API is nothing that a browser is to run or guess at either.
fn with_headers(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a person looks at an address: of a deep link, say.
fn wants_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

/// Whether `Accept-Encoding` has this one, and not with weight 0 (RFC 9110, section 12.5.3).
fn accepts(headers: &HeaderMap, encoding: &str) -> bool {
    let accepted = headers.get(ACCEPT_ENCODING);
    let accepted = accepted.and_then(|accepted| accepted.to_str().ok());
    let mut codings = accepted.unwrap_or_default().split(',');
    codings.any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(encoding));
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        named && weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|q| q > 0.0))
    })
}

fn file(name: &str, headers: &HeaderMap) -> Response {
    let compressed = ENCODINGS.iter().find_map(|(encoding, suffix)| {
        let file = PAGE.get_file(format!("{name}{suffix}"))?;
        accepts(headers, encoding).then_some((Some(*encoding), file))
    });
    let Some((encoding, file)) = compressed.or_else(|| Some((None, PAGE.get_file(name)?))) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let tag = tag(file);
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|known| known.to_str().ok());
    let mut response = if known == Some(&tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Body::from(file.contents()).into_response()
    };
    let kept = if name.starts_with(HASHED) {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(kept));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if let Some(encoding) = encoding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    with_headers(response)
}

/// An entity tag: the beginning of the contents' hash.
fn tag(file: &File<'_>) -> String {
    let hash = digest(&SHA256, file.contents());
    format!("\"{}\"", hex(&hash.as_ref()[..12]))
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, suffix)| suffix) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("webmanifest" | "json") => "application/json",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}
