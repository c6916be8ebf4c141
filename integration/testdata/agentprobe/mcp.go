package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// tools URL|env:VARIABLE VERSION list, or call TOOL PATH, or read URI speaks MCP by the run's listener, as go-sdk's client does.
func tools(ctx context.Context, args []string) error {
	url := args[0]
	if name, ok := strings.CutPrefix(url, "env:"); ok {
		url = os.Getenv(name)
	}
	c := mcp.NewClient(&mcp.Implementation{Name: "agentprobe", Version: "1"}, &mcp.ClientOptions{
		ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			fmt.Println("the user was asked")
			return &mcp.ElicitResult{Action: "decline"}, nil
		},
	})
	s, err := c.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: url}, &mcp.ClientSessionOptions{ProtocolVersion: args[1]})
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Println(s.InitializeResult().ProtocolVersion)
	switch args[2] {
	case "list":
		a, err := s.ListTools(ctx, nil)
		if err != nil {
			return err
		}
		for _, t := range a.Tools {
			fmt.Println(t.Name)
		}
		b, err := s.ListResources(ctx, nil)
		if err != nil {
			return err
		}
		for _, r := range b.Resources {
			fmt.Println(r.URI)
		}
		return nil
	case "read":
		a, err := s.ReadResource(ctx, &mcp.ReadResourceParams{URI: args[3]})
		if err != nil {
			return err
		}
		fmt.Println(a.Contents[0].Text)
		return nil
	}
	a, err := s.CallTool(ctx, &mcp.CallToolParams{Name: args[3], Arguments: map[string]any{"path": args[4]}})
	if err != nil {
		return err
	}
	for _, part := range a.Content {
		if text, ok := part.(*mcp.TextContent); ok {
			fmt.Println(text.Text)
		}
	}
	return nil
}
