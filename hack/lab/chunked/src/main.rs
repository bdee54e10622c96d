//! The command line of ostree-ext, which the crate has as a library only.

fn main() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(ostree_ext::cli::run_from_iter(std::env::args_os()))
}
