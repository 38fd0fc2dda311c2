//! All routes, and the description that is made of them.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{
    Api, accounts, cluster, console, disks, events, grants, guests, history, images, interfaces,
    memory, metrics, migration, networks, nodes, pools, power, refusals, report, session, tasks,
    updates,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "pindahd",
        version = "1",
        description = "One node, or any of a cluster's, which answers for all. HTTPS only; the \
            certificate comes from the site's own authority. The header Pindah-Node names the node \
            that is to do what is asked for, as in the creation of a guest or the upload of an \
            image; without it that is the one that has the guest or task, or the one asked. \
            An answer is {\"data\": …}, {\"task\": …} or {\"error\": {\"code\", \"message\"}}.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&BearerToken),
    security(("token" = []))
)]
struct Base;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_default();
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("token", scheme);
    }
}

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(guests::list_guests, guests::create_guest))
        .routes(routes!(
            guests::show_guest,
            guests::edit_guest,
            guests::delete_guest
        ))
        .routes(routes!(guests::clone_guest))
        .routes(routes!(guests::make_template, guests::unmake_template))
        .routes(routes!(guests::guest_log))
        .routes(routes!(history::guest_history))
        .routes(routes!(history::node_history))
        .routes(routes!(history::history_part))
        .routes(routes!(report::history_tally))
        .routes(routes!(report::show_report))
        .routes(routes!(interfaces::edit_interface))
        .routes(routes!(power::start_guest))
        .routes(routes!(power::stop_guest))
        .routes(routes!(power::reset_guest))
        .routes(routes!(power::pause_guest))
        .routes(routes!(power::resume_guest))
        .routes(routes!(memory::set_memory_target))
        .routes(routes!(migration::migrate_guest, migration::plan_migration))
        .routes(routes!(migration::offer_place))
        .routes(routes!(migration::receive_guest))
        .routes(routes!(migration::settle_arrival))
        .routes(routes!(console::guest_console))
        .routes(routes!(disks::move_disk))
        .routes(routes!(disks::resize_disk))
        .routes(routes!(disks::limit_disk))
        .routes(routes!(disks::export_disk))
        .routes(routes!(tasks::list_tasks))
        .routes(routes!(tasks::show_task))
        .routes(routes!(tasks::task_log))
        .routes(routes!(tasks::cancel_task))
        .routes(routes!(events::stream_events))
        .routes(routes!(nodes::list_nodes))
        .routes(routes!(nodes::show_node, nodes::remove_node))
        .routes(routes!(nodes::drain_node))
        .routes(routes!(nodes::undrain_node))
        .routes(routes!(updates::upload_bundle))
        .routes(routes!(updates::download_bundle))
        .routes(routes!(updates::update_node))
        .routes(routes!(updates::update_cluster))
        .routes(routes!(networks::list_networks, networks::create_network))
        .routes(routes!(
            networks::show_network,
            networks::edit_network,
            networks::delete_network
        ))
        .routes(routes!(cluster::show_cluster))
        .routes(routes!(cluster::init_cluster))
        .routes(routes!(cluster::show_cpu))
        .routes(routes!(cluster::adopt_cpu))
        .routes(routes!(cluster::show_balance))
        .routes(routes!(cluster::create_join_token))
        .routes(routes!(cluster::admit_node))
        .routes(routes!(cluster::join_cluster))
        .routes(routes!(cluster::leave_cluster))
        .routes(routes!(cluster::backup_cluster))
        .merge(
            OpenApiRouter::new()
                .routes(routes!(cluster::recover_cluster))
                .layer(cluster::backup_limit()),
        )
        .routes(routes!(cluster::clock))
        .routes(routes!(metrics::show_metrics))
        .routes(routes!(metrics::prometheus_metrics))
        .routes(routes!(pools::list_pools, pools::create_pool))
        .routes(routes!(pools::show_pool, pools::delete_pool))
        .routes(routes!(pools::list_volumes))
        .routes(routes!(images::list_images))
        .routes(routes!(
            images::show_image,
            images::upload_image,
            images::delete_image
        ))
        .routes(routes!(images::download_image))
        .routes(routes!(accounts::login))
        .routes(routes!(
            session::show_session,
            session::open_session,
            session::renew_session,
            session::end_session
        ))
        .routes(routes!(accounts::list_users, accounts::create_user))
        .routes(routes!(accounts::show_user, accounts::delete_user))
        .routes(routes!(grants::grant_user, grants::revoke_user))
        .routes(routes!(grants::grant_user_guest, grants::revoke_user_guest))
        .routes(routes!(accounts::list_tokens, accounts::create_token))
        .routes(routes!(accounts::show_token, accounts::delete_token))
        .routes(routes!(grants::grant_token, grants::revoke_token))
        .routes(routes!(
            grants::grant_token_guest,
            grants::revoke_token_guest
        ))
}

/// The OpenAPI 3.1 description, as JSON.
pub fn document() -> String {
    let (_, mut document) = routes().split_for_parts();
    refusals::describe(&mut document);
    let mut json = document.to_pretty_json().unwrap_or_default();
    json.push('\n');
    json
}

pub(super) async fn serve() -> impl IntoResponse {
    let json = include_str!("../../api/openapi.json");
    ([(header::CONTENT_TYPE, "application/json")], json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openapi_file_is_what_the_code_says() {
        let expected = document();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/api/openapi.json");
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &expected).unwrap();
        }
        let checked_in = std::fs::read_to_string(path).unwrap();
        assert!(
            checked_in == expected,
            "openapi.json differs from the code: UPDATE_OPENAPI=1 cargo test -p pindah-agent \
             openapi writes it anew"
        );
    }
}
