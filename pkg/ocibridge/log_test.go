package ocibridge_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/kedge-os/kedge/pkg/ocibridge"
)

func TestRouteLogs(t *testing.T) {
	var b bytes.Buffer
	ocibridge.RouteLogs(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo})))
	defer ocibridge.RouteLogs(slog.New(slog.DiscardHandler))
	logrus.Debug("not this")
	logrus.WithField("blob", 7).Info("reconnecting")
	if got := b.String(); strings.Contains(got, "not this") || !strings.Contains(got, "level=INFO msg=reconnecting blob=7") {
		t.Errorf("the log says %q", got)
	}
}
