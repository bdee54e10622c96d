// Command kedge keeps a Linux host on an OCI image.
//
// One file per verb: a builder that describes it, an options struct with its
// flags, and a runX function that makes one call into pkg/host and prints what
// came of it. The verbs, the JSON and the exit codes are docs/cli.md and
// docs/exit-codes.md; they only ever grow.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
	"go.podman.io/storage/pkg/reexec"

	"github.com/kedge-os/kedge/pkg/boot/units"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

func main() {
	// What unpacks layers for containers-storage is this program, run again.
	if reexec.Init() {
		return
	}
	limitGarbage()
	// A reader that goes away (kedge upgrade | head) must not kill an
	// operation half-way; the write fails with EPIPE instead.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the defaults are back: a second one ends kedge at
	// once, which is as safe as pulling the plug.
	context.AfterFunc(ctx, stop)
	handOver("/proc/self/exe", units.DefaultProgram)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// handOver runs the image's own kedge instead of one that self install put on
// the host, which may be older: the units in /etc go on naming the latter.
func handOver(self, image string) {
	if path, err := os.Readlink(self); err != nil || path != host.SelfProgram {
		return
	}
	if err := syscall.Exec(image, os.Args, os.Environ()); err != nil {
		return // the image has none
	}
}

// run is the whole program: arguments without the program's name in, exit
// status out.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	e := &env{stdout: stdout, stderr: stderr}
	app := newApp(e)
	line, err := arrange(app, args)
	switch {
	case err != nil:
	case line.help:
		err = e.write([]byte(helpText(app, line.path)))
	default:
		err = app.RunContext(ctx, append([]string{app.Name}, line.args...))
	}
	// JSON is asked for even where the flags could not be parsed.
	e.json = e.json || line.json
	return e.report(err)
}

func newApp(e *env) *cli.App {
	app := &cli.App{
		Name:  "kedge",
		Usage: "keep a Linux host on an OCI image",
		Description: "kedge installs a host from an OCI image, moves it to another image or a newer one\n" +
			"in one atomic step, and keeps the previous root one reboot away.",
		Version:         buildVersion(),
		HideHelp:        true,
		HideHelpCommand: true,
		HideVersion:     true,
		Flags:           e.flags(),
		Writer:          e.stdout,
		ErrWriter:       e.stderr,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    usageError,
		Before:          e.before,
		Commands: []*cli.Command{
			cmdStatus(e), cmdSwitch(e), cmdUpgrade(e), cmdRollback(e), cmdDeploy(e), cmdPlan(e),
			cmdDiff(e), cmdEtc(e), cmdUsrOverlay(e), cmdKargs(e), cmdInitramfs(e), cmdPkg(e), cmdPin(e), cmdUnpin(e), cmdHealth(e), cmdHistory(e), cmdCleanup(e), cmdFsck(e),
			cmdInstall(e), cmdImage(e), cmdContainer(e), cmdSelf(e), cmdInternals(e),
			cmdCompletion(e), cmdComplete(e), cmdMan(e),
		},
	}
	// console=ttyS0,115200 is one kernel argument.
	app.DisableSliceFlagSeparator = true
	app.Action = func(c *cli.Context) error {
		if e.version {
			return e.printf("kedge %s\n", app.Version)
		}
		return fault.New(fault.Usage, "kedge --help lists the verbs", "no verb given")
	}
	forEach(app.Commands, nil, func(_ []*cli.Command, c *cli.Command) {
		c.HideHelp = true
		c.HideHelpCommand = true
		c.OnUsageError = usageError
	})
	return app
}

// forEach visits every command with the commands above it.
func forEach(commands, above []*cli.Command, visit func(above []*cli.Command, c *cli.Command)) {
	for _, c := range commands {
		visit(above, c)
		forEach(c.Subcommands, append(above[:len(above):len(above)], c), visit)
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	name := "kedge"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != name {
		name = c.Command.HelpName
	}
	return fault.New(fault.Usage, name+" --help shows the flags", "%s: %w", name, err)
}
