<%@ page contentType="text/plain" %>Hello from Tomcat
