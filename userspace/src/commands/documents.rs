//! `warmimg completions` and `man`: made from the command line's own definition.

use std::io;

use clap::CommandFactory as _;

use crate::{
    cli::{self, Cli},
    error::Error,
};

pub fn completions(arguments: &cli::Completions) -> Result<u8, Error> {
    clap_complete::generate(
        arguments.shell,
        &mut Cli::command(),
        "warmimg",
        &mut io::stdout(),
    );
    Ok(0)
}

pub fn man(arguments: &cli::Man) -> Result<u8, Error> {
    let mut main = Cli::command();
    main.build();
    let page = match &arguments.command {
        None => main,
        Some(name) => match main.find_subcommand(name) {
            Some(command) => command.clone().name(format!("warmimg-{name}")),
            None => {
                let known: Vec<_> = main
                    .get_subcommands()
                    .filter(|command| !command.is_hide_set())
                    .map(|command| command.get_name().to_owned())
                    .collect();
                let message = format!(
                    "no command is called {name:?}; there are: {}",
                    known.join(", ")
                );
                main.error(clap::error::ErrorKind::InvalidValue, message)
                    .exit()
            }
        },
    };
    clap_mangen::Man::new(page)
        .render(&mut io::stdout())
        .map_err(Error::Output)?;
    Ok(0)
}
