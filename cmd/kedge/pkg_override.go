package main

import (
	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/fault"
)

func cmdPkgOverride(e *env) *cli.Command {
	return &cli.Command{
		Name: "override", Usage: "replace or remove packages that the image brings",
		Description: "An override stays over upgrades. It rests where a later image lacks the package, or has a newer\n" +
			"version than the one that was put in its place.",
		UsageText:   "kedge pkg override replace ./agent-1.2.rpm",
		Subcommands: []*cli.Command{cmdPkgOverrideReplace(e), cmdPkgOverrideRemove(e), cmdPkgOverrideReset(e)},
	}
}

func cmdPkgOverrideReplace(e *env) *cli.Command {
	var opts pkgOptions
	return &cli.Command{
		Name: "replace", Usage: "put another version of a package in the place of the image's", ArgsUsage: "NAME|FILE…",
		Description: "NAME is a package of the image: the newest version of the repositories takes its place, or the one\n" +
			"that is named as the image's package manager takes it. FILE ends in .deb or .rpm and is kept.",
		UsageText: "kedge pkg override replace podman ./kernel-6.12.rpm",
		Flags: append(opts.AddFlags(),
			&cli.StringSliceFlag{Name: "remove", Usage: "in the same change, remove the image's package `NAME`", Destination: &opts.Also},
			&cli.StringSliceFlag{Name: "add", Usage: "in the same change, add `NAME`", Destination: &opts.Install}),
		Action: func(c *cli.Context) error {
			opts.Verb, opts.Replace, opts.OverrideRemove, opts.Add = "pkg override replace", c.Args().Slice(), opts.Also.Value(), opts.Install.Value()
			return runPkg(c.Context, e, opts, opts.Replace)
		},
	}
}

func cmdPkgOverrideRemove(e *env) *cli.Command {
	var opts pkgOptions
	return &cli.Command{
		Name: "remove", Usage: "remove packages of the image", ArgsUsage: "NAME…",
		Description: "What other packages of the image need goes only together with them.",
		UsageText:   "kedge pkg override remove nano --add vim",
		Flags: append(opts.AddFlags(),
			&cli.StringSliceFlag{Name: "replace", Usage: "in the same change, replace the image's package `NAME`", Destination: &opts.Also},
			&cli.StringSliceFlag{Name: "add", Usage: "in the same change, add `NAME`", Destination: &opts.Install}),
		Action: func(c *cli.Context) error {
			opts.Verb, opts.OverrideRemove, opts.Replace, opts.Add = "pkg override remove", c.Args().Slice(), opts.Also.Value(), opts.Install.Value()
			return runPkg(c.Context, e, opts, opts.OverrideRemove)
		},
	}
}

func cmdPkgOverrideReset(e *env) *cli.Command {
	var opts pkgOptions
	return &cli.Command{
		Name: "reset", Usage: "bring the image's own packages back", ArgsUsage: "NAME…",
		Description: "Takes back what `kedge pkg override` was told of these packages, or with --all of every one.",
		UsageText:   "kedge pkg override reset --all",
		Flags: append(opts.AddFlags(),
			&cli.BoolFlag{Name: "all", Usage: "every package that is overridden", Destination: &opts.ResetAll}),
		Action: func(c *cli.Context) error {
			opts.Verb, opts.Reset = "pkg override reset", c.Args().Slice()
			if opts.ResetAll && len(opts.Reset) > 0 {
				return fault.New(fault.Usage, "leave one of them out", "%s: NAME and --all exclude each other", opts.Verb)
			}
			if opts.ResetAll {
				return runPkgChange(c.Context, e, opts)
			}
			return runPkg(c.Context, e, opts, opts.Reset)
		},
	}
}

func cmdPkgRefresh(e *env) *cli.Command {
	var opts pkgOptions
	return &cli.Command{
		Name: "refresh", Usage: "take newer versions of what was put on the image",
		Description: "Chooses the packages again from what the repositories have now, on the same image. Where nothing\n" +
			"is newer, nothing changes. A package that the repositories lost keeps the host as it is.",
		UsageText: "kedge pkg refresh --dry-run",
		Flags:     opts.AddFlags(),
		Action: withoutOperands(func(c *cli.Context) error {
			opts.Verb, opts.Refresh = "pkg refresh", true
			return runPkgChange(c.Context, e, opts)
		}),
	}
}
