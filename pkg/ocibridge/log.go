package ocibridge

import (
	"context"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// RouteLogs sends what go.podman.io/image and its storage log to l, for the
// main function of a program: they have one logger per process, which writes to
// stderr in a form of its own.
func RouteLogs(l *slog.Logger) {
	level := logrus.WarnLevel
	switch ctx := context.Background(); {
	case l.Enabled(ctx, slog.LevelDebug):
		level = logrus.DebugLevel
	case l.Enabled(ctx, slog.LevelInfo):
		level = logrus.InfoLevel
	}
	logrus.SetLevel(level)
	logrus.SetOutput(io.Discard)
	hooks := make(logrus.LevelHooks)
	hooks.Add(logHook{l})
	logrus.StandardLogger().ReplaceHooks(hooks)
}

type logHook struct{ to *slog.Logger }

// Levels implements logrus.Hook.
func (logHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (h logHook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelError
	case logrus.WarnLevel:
		level = slog.LevelWarn
	case logrus.InfoLevel:
		level = slog.LevelInfo
	}
	attrs := make([]slog.Attr, 0, len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, slog.Any(k, v))
	}
	h.to.LogAttrs(context.Background(), level, e.Message, attrs...)
	return nil
}
