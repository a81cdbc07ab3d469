//! The control API under `/_fake/`: what the tests ask and tell the fake. Never recorded, never limited.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::answer::Answer;
use crate::gate::Patch;
use crate::record::lock;
use crate::server::App;

pub async fn answer(app: &App, request: Request<Incoming>) -> Result<Response<Answer>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let response = match (parts.method, parts.uri.path()) {
        (Method::GET, "/_fake/health") => respond(StatusCode::OK, "text/plain", "ok"),
        (Method::GET, "/_fake/requests") => respond(StatusCode::OK, "application/json", app.journal.to_json()),
        (Method::DELETE, "/_fake/requests") => {
            app.journal.forget();
            respond(StatusCode::NO_CONTENT, "application/json", "")
        }
        (Method::GET, "/_fake/config") => config(app),
        (Method::PUT, "/_fake/config") => match change(app, &body) {
            Ok(()) => config(app),
            Err(why) => error(StatusCode::BAD_REQUEST, &why),
        },
        (_, "/_fake/health" | "/_fake/requests" | "/_fake/config") => {
            error(StatusCode::METHOD_NOT_ALLOWED, "not a method of this resource")
        }
        _ => error(StatusCode::NOT_FOUND, "there are /_fake/requests, /_fake/config, /_fake/health"),
    };
    Ok(response)
}

fn change(app: &App, body: &[u8]) -> Result<(), String> {
    let patch: Patch = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let now = app.journal.now_us();
    lock(&app.gate).change(patch, now)
}

fn config(app: &App) -> Response<Answer> {
    let config = lock(&app.gate).config().clone();
    let body = serde_json::to_vec(&config).unwrap_or_default();
    respond(StatusCode::OK, "application/json", body)
}

fn error(status: StatusCode, why: &str) -> Response<Answer> {
    let body = json!({"error": why}).to_string();
    respond(status, "application/json", body)
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(body.into(), None));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
