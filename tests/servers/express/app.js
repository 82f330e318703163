// The application of Express's own introduction, with a route that shows its process.
const express = require("express");

const app = express();
app.get("/", (request, response) => response.send("Hello from Express\n"));
app.listen(Number(process.env.PORT), "127.0.0.1");
