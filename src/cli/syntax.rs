//! The whole syntax: flags in groups, each only where it does something, and examples.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory as _, FromArgMatches as _};

use crate::cli::args::Cli;
use crate::cli::output;

/// Groups of flags. What is in none is the command's own.
const GROUPS: [(&str, &[&str]); 6] = [
    (
        "Content",
        &[
            "platform",
            "artifact_type",
            "variant",
            "layout",
            "include",
            "exclude",
            "unpack",
            "strip_components",
            "readable",
            "path",
        ],
    ),
    ("Registry", &HOSTS),
    ("Registry", &["parallel_downloads", "docker_config"]),
    (
        "Store",
        &["root", "no_wait", "verify_diff_ids", "grant_ttl", "always_verify", "spool_above", "pull_policy"],
    ),
    ("Output", &["output", "log_format", "verbose"]),
    ("For tests of ocivol", &["target_root", "allow_writer_modes"]),
];

/// Flags about which registries there are, and how they are spoken to.
const HOSTS: [&str; 6] =
    ["hosts_dir", "authoritative_mirrors", "plain_http", "allow_hosts", "oci_layout_dirs", "stall_timeout"];

/// Flags of all commands that do something with some of them only, and with which.
const SOMEWHERE: [(&[&str], &[&str]); 5] = [
    (
        &["root"],
        &[
            "node", "pull", "mount", "umount", "export", "inspect", "ls", "rm", "gc", "verify", "fsck",
            "load", "save", "status",
        ],
    ),
    (&["no_wait"], &["pull", "mount", "export", "rm", "gc", "fsck", "load", "save"]),
    (&HOSTS, &["node", "controller", "pull", "mount", "export", "inspect", "resolve", "save"]),
    (
        &["parallel_downloads", "verify_diff_ids", "grant_ttl", "always_verify", "spool_above"],
        &["node", "pull", "mount", "export", "save", "load"],
    ),
    (&["docker_config"], &["pull", "mount", "export", "inspect", "resolve", "save"]),
];

/// Commands that print nothing which could be JSON.
const TEXT_ONLY: [&str; 5] = ["node", "controller", "demo", "completion", "man"];

/// What people try first.
const EXAMPLES: [(&str, &str); 14] = [
    (
        "pull",
        "  ocivol pull registry.example.com/models/llama:v1\n  ocivol pull --dry-run --include '*.json' registry.example.com/models/llama:v1\n  ocivol pull REF REF REF",
    ),
    (
        "mount",
        "  ocivol mount registry.example.com/models/llama:v1 /mnt\n  ocivol mount registry.example.com/models/llama:v1 /tmp/m -- ls -l /tmp/m\n  ocivol mount --exec alpine /tmp/a -- /tmp/a/bin/busybox",
    ),
    ("umount", "  ocivol umount /mnt"),
    ("export", "  ocivol export registry.example.com/models/llama:v1 ./llama"),
    (
        "inspect",
        "  ocivol inspect registry.example.com/models/llama:v1\n  ocivol inspect --output json alpine | jq -r .digest",
    ),
    (
        "resolve",
        "  ocivol resolve registry.example.com/models/llama:v1\n  ocivol resolve --output json alpine",
    ),
    ("ls", "  ocivol ls\n  ocivol ls --output json | jq -r '.[].references[]'"),
    ("rm", "  ocivol rm registry.example.com/models/llama:v1\n  ocivol rm sha256:0123456789ab"),
    ("gc", "  ocivol gc --dry-run"),
    ("verify", "  ocivol verify registry.example.com/models/llama:v1"),
    ("load", "  ocivol load model.tar\n  ocivol load model.tar registry.example.com/models/llama:v1"),
    ("save", "  ocivol save registry.example.com/models/llama:v1 model.tar"),
    (
        "status",
        "  kubectl -n ocivol exec ds/ocivol -- /ocivol status\n  ocivol status --output json | jq .pulls",
    ),
    ("completion", "  ocivol completion bash >/etc/bash_completion.d/ocivol"),
];

const STATUSES: &str = "Exit status: 0 done, 1 failed, 2 wrong usage, 130 after Ctrl-C. The help of a command has its flags, with the variables that set them, and examples.";

/// The syntax.
pub fn command() -> clap::Command {
    let mut all = Cli::command().after_help(STATUSES);
    let global: Vec<Arg> = all.get_arguments().filter(|flag| flag.is_global_set()).cloned().collect();
    let names: Vec<String> = all.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for name in &names {
        all = all.mut_subcommand(name, |command| {
            // Flags of all commands are the command's own here, so that they can be hidden where they do nothing.
            let flags = global.iter().cloned().map(|flag| {
                match does_something(name, flag.get_id().as_str()) {
                    true => flag,
                    // What a variable says of it cannot be wrong here, as it is not read.
                    false => flag.hide(true).env(Resettable::Reset),
                }
            });
            let mut command = command.args(flags).mut_args(grouped);
            if let Some((_, examples)) = EXAMPLES.iter().find(|(known, _)| known == name) {
                command = command.after_help(format!("Examples:\n{examples}"));
            }
            // Else clap lists as required whatever variables set.
            let usage = command.clone().bin_name(format!("ocivol {name}")).render_usage().to_string();
            let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
            command.override_usage(usage)
        });
    }
    let everywhere = |flag: Arg| {
        let id = flag.get_id().as_str();
        let is_hidden = SOMEWHERE.iter().any(|(flags, _)| flags.contains(&id)) && id != "root";
        // The variables are those of the commands that do something with them.
        if is_hidden { grouped(flag).hide(true).env(Resettable::Reset) } else { grouped(flag) }
    };
    all.mut_args(everywhere).override_usage("ocivol [OPTIONS] <COMMAND>")
}

/// Reads the command line. What cannot be read, and what asks for help, is answered here.
///
/// # Errors
/// The exit status.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let words = joined(words);
    let matches = match command().try_get_matches_from(&words) {
        Ok(matches) => matches,
        Err(error) => return Err(refuse(&error, wants_json(&words))),
    };
    let mut cli = Cli::from_arg_matches(&matches).map_err(|error| refuse(&error, wants_json(&words)))?;
    let Some((name, of_command)) = matches.subcommand() else { return Ok(cli) };
    for id in given(of_command) {
        let flag = format!("--{}", long(&id));
        if does_something(name, &id) {
            cli.common.given.push(flag);
        } else if id != "root" {
            // Which store is meant may be said always: what is not asked of it changes nothing.
            output::warn(&format!("{flag} does nothing for `ocivol {name}`"));
        }
    }
    Ok(cli)
}

/// Flags that are true when nothing is said with them, as `--readable`, and take a value after `=`.
const BOOLEANS: [&str; 3] = ["--readable", "--volume-secrets", "--anonymous"];

/// The words, with `--readable false` as `--readable=false`: without the sign a word after it could as well be a reference.
fn joined(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let mut is_own = true;
    for word in words {
        let is_value = word == "true" || word == "false";
        match joined.last_mut() {
            Some(flag) if is_own && is_value && BOOLEANS.iter().any(|known| flag.as_os_str() == *known) => {
                flag.push("=");
                flag.push(word);
            }
            _ => {
                // What comes then is another program's.
                is_own &= word != "--";
                joined.push(word);
            }
        }
    }
    joined
}

/// Flags of some commands that are on the command line itself, and not set by a variable.
fn given(matches: &ArgMatches) -> Vec<String> {
    let known: Vec<String> = matches.ids().map(|id| id.as_str().to_owned()).collect();
    let is_given = |id: &String| {
        let is_limited = SOMEWHERE.iter().any(|(flags, _)| flags.contains(&id.as_str())) || id == "output";
        is_limited && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    known.into_iter().filter(is_given).collect()
}

/// The flag's name on the command line.
fn long(id: &str) -> String {
    if id == "oci_layout_dirs" { "oci-layout-dir".to_owned() } else { id.replace('_', "-") }
}

/// Whether a flag of all commands does something for the command `name`.
fn does_something(name: &str, id: &str) -> bool {
    if id == "output" {
        return !TEXT_ONLY.contains(&name);
    }
    SOMEWHERE
        .iter()
        .find(|(flags, _)| flags.contains(&id))
        .is_none_or(|(_, commands)| commands.contains(&name))
}

/// The flag in its group. Help does not show what variables are set to: it is the same everywhere.
fn grouped(flag: Arg) -> Arg {
    let flag = flag.hide_env_values(true);
    if flag.is_positional() {
        return flag;
    }
    match GROUPS.iter().find(|(_, ids)| ids.contains(&flag.get_id().as_str())) {
        Some((heading, _)) => flag.help_heading(*heading),
        None => flag,
    }
}

/// Whether errors are to be JSON, of a command line that cannot be read.
fn wants_json(words: &[OsString]) -> bool {
    let is_flag = words.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    let is_variable = std::env::var_os("OCIVOL_OUTPUT").is_some_and(|value| value == "json");
    is_flag || is_variable || words.iter().any(|word| word == "--output=json")
}

fn refuse(error: &clap::Error, as_json: bool) -> ExitCode {
    if as_json && error.use_stderr() {
        let text = error.render().to_string();
        let line = text.lines().next().unwrap_or_default();
        output::fail_as_json("invalid-argument", line.strip_prefix("error: ").unwrap_or(line));
    } else {
        let _ = error.print(); // There is nowhere else to say it.
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Command;

    #[test]
    fn the_syntax_is_sound_and_flags_are_shown_where_they_do_something() {
        command().debug_assert();
        let mut all = command();
        let mut help = |name: &str| all.find_subcommand_mut(name).expect(name).render_help().to_string();
        for (name, flag, is_shown) in [
            ("pull", "--plain-http", true),
            ("pull", "--root", true),
            ("ls", "--root", true),
            ("ls", "--plain-http", false),
            ("ls", "--docker-config", false),
            ("umount", "--parallel-downloads", false),
            ("demo", "--verify-diff-ids", false),
            ("inspect", "--pull-policy", false),
            ("resolve", "--root", false),
            ("node", "--no-wait", false),
        ] {
            assert_eq!(help(name).contains(flag), is_shown, "{name} {flag}\n{}", help(name));
        }
        for group in ["Content:", "Registry:", "Store:", "Output:", "Examples:", "possible values"] {
            assert!(help("pull").contains(group), "{group}\n{}", help("pull"));
        }
        assert!(help("pull").contains("Usage: ocivol pull [OPTIONS] <REF>..."), "{}", help("pull"));
    }

    #[test]
    fn flags_may_stand_before_the_command_and_after_it() {
        for words in [
            ["ocivol", "--root", "/x", "--plain-http", "a,b", "pull", "r/x"],
            ["ocivol", "pull", "--root", "/x", "--plain-http", "a,b", "r/x"],
        ] {
            let cli = parse(words.map(OsString::from)).expect("read");
            assert_eq!(cli.common.root.as_deref(), Some(std::path::Path::new("/x")));
            assert_eq!(cli.common.plain_http, ["a", "b"]);
            let mut given = cli.common.given;
            given.sort();
            assert_eq!(given, ["--plain-http", "--root"]);
        }
    }

    #[test]
    fn booleans_need_no_value() {
        let readable = |words: &[&str]| match parse(words.iter().map(OsString::from)).expect("read").command {
            Command::Pull(flags) => (flags.content.files.readable, flags.references),
            Command::Mount(flags) => (
                flags.content.files.readable,
                flags.command.iter().map(|it| it.display().to_string()).collect(),
            ),
            other => panic!("{other:?}"),
        };
        for (words, value, rest) in [
            (&["ocivol", "pull", "--readable", "r/x"] as &[&str], "true", &["r/x"] as &[&str]),
            (&["ocivol", "pull", "--readable=false", "r/x"], "false", &["r/x"]),
            (&["ocivol", "pull", "--readable", "false", "r/x"], "false", &["r/x"]),
            (&["ocivol", "pull", "r/x", "--readable", "true"], "true", &["r/x"]),
            (
                &["ocivol", "mount", "--readable", "r/x", "/m", "--", "x", "--readable", "false"],
                "true",
                &["x", "--readable", "false"],
            ),
        ] {
            let found = readable(words);
            assert_eq!(
                (found.0.as_deref(), found.1),
                (Some(value), rest.iter().map(ToString::to_string).collect())
            );
        }
        let all = command();
        for flag in BOOLEANS {
            let is_flag = |known: &Arg| known.get_long().is_some_and(|long| flag == format!("--{long}"));
            assert!(all.get_subcommands().any(|command| command.get_arguments().any(is_flag)), "{flag}");
        }
    }

    #[test]
    fn all_named_flags_and_commands_exist() {
        let all = command();
        let exists = |id: &str| {
            let has = |command: &clap::Command| command.get_arguments().any(|flag| flag.get_id() == id);
            has(&all) || all.get_subcommands().any(has)
        };
        for (_, ids) in GROUPS {
            assert!(ids.iter().all(|id| exists(id)), "{ids:?}");
        }
        for (flags, commands) in SOMEWHERE {
            assert!(flags.iter().all(|id| exists(id)), "{flags:?}");
            assert!(commands.iter().all(|name| all.find_subcommand(name).is_some()), "{commands:?}");
        }
        let commands = EXAMPLES.iter().map(|(name, _)| name).chain(&TEXT_ONLY);
        assert!(commands.into_iter().all(|name| all.find_subcommand(name).is_some()));
    }
}
